"""A network in torch from a DataLoader, with early stopping, that goes on at its last checkpoint when it was killed.

trainer: "net:fit"
code: /path/to/examples/trainers/torch_net
inputs: features
params: {epochs: 30, width: 32}
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from everloop.trainer import Learned, Rows, Training

PATIENCE = 3


class Net(nn.Module):
    """Numbers are scaled by what training saw, missing ones are its mean, and far ones are kept near."""

    def __init__(self, rows: np.ndarray, width: int, answers: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(np.nanmean(rows, axis=0)))
        self.register_buffer("spread", torch.from_numpy(np.nanstd(rows, axis=0) + 1e-6))
        self.layers = nn.Sequential(nn.Linear(rows.shape[1], width), nn.ReLU(), nn.Linear(width, answers))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        scaled = torch.nan_to_num((rows - self.mean) / self.spread)
        return self.layers(torch.clamp(scaled, -5.0, 5.0))


def fit(training: Training) -> Learned:
    """Epochs until the validation loss has not fallen for three; in a refit, as many as were found."""
    params, most = training.params, training.iterations or training.params.get("epochs", 30)
    net = Net(training.train.numpy(), params.get("width", 32), max(1, len(training.classes)))
    learner = torch.optim.Adam(net.parameters(), lr=params.get("rate", 0.01))
    best, best_loss, best_epoch = _copied(net.state_dict()), float("inf"), 0
    begun = 0
    if (kept := training.restore()) is not None:
        begun, state = kept
        best, best_loss, best_epoch = state["best"], float(state["best_loss"]), state["best_epoch"]
        _go_on(net, learner, state)
    for epoch in range(begun + 1, most + 1):
        for rows, y in training.train.loader(256, shuffle=True, epoch=epoch):
            learner.zero_grad()
            _loss(net, rows, y).backward()
            learner.step()
        if training.validation is None:
            training.report(epoch, epochs=epoch, most=most)
        else:
            loss = _mean_loss(net, training.validation)
            training.report(epoch, epochs=epoch, most=most, validation_loss=loss)
            if loss < best_loss:
                best, best_loss, best_epoch = _copied(net.state_dict()), loss, epoch
            if epoch - best_epoch >= PATIENCE:
                break
        known = {"best": best, "best_loss": str(best_loss), "best_epoch": best_epoch}  # JSON has no infinity
        training.checkpoint(epoch, lambda known=known: known | _so_far(net, learner))
    if training.iterations is None:
        net.load_state_dict({name: torch.from_numpy(values) for name, values in best.items()})
    return Learned(net, training.iterations or max(1, best_epoch))


def _loss(net: Net, rows: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    told = net(rows)
    return functional.cross_entropy(told, y) if told.shape[1] > 1 else functional.mse_loss(told[:, 0], y)


def _mean_loss(net: Net, validation: Rows) -> float:
    with torch.no_grad():
        losses = [(float(_loss(net, rows, y)), len(y)) for rows, y in validation.loader(4096)]
    return sum(loss * count for loss, count in losses) / sum(count for _, count in losses)


# --- checkpoints: arrays and JSON, nothing that only torch can read ---


def _copied(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: values.detach().numpy().copy() for name, values in tensors.items()}


def _so_far(net: Net, learner: torch.optim.Optimizer) -> dict[str, Any]:
    moments = {str(place): _copied(held) for place, held in learner.state_dict()["state"].items()}
    return {"weights": _copied(net.state_dict()), "moments": moments}


def _go_on(net: Net, learner: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    def tensors(held: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(np.array(values)) for name, values in held.items()}

    net.load_state_dict(tensors(state["weights"]))
    moments = {int(place): tensors(held) for place, held in state["moments"].items()}
    learner.load_state_dict({"state": moments, "param_groups": learner.state_dict()["param_groups"]})
