"""A network in torch that several processes train together: DistributedDataParallel over gloo, or nccl on GPUs.

trainer: "ddp:fit"
code: /path/to/examples/trainers/torch_ddp
inputs: features
params: {epochs: 20, width: 64}
resources: {members: {min: 2, max: 4}}

Each batch is divided among the ranks, so that all batches are the same however many there are. Any rank may be killed:
all end, and the next attempt goes on at the last checkpoint, with as many ranks as its lease has.
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from everloop.trainer import Learned, Rows, Training

PATIENCE = 5
BATCH = 256


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


def fit(training: Training) -> Learned | None:
    """Epochs until the validation loss has not fallen for five; in a refit, as many as were found."""
    training.join()
    params, most = training.params, training.iterations or training.params.get("epochs", 20)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = Net(training.train.numpy(), params.get("width", 64), max(1, len(training.classes))).to(device)
    learner = torch.optim.Adam(net.parameters(), lr=params.get("rate", 0.003))
    begun, best = 0, (float("inf"), 0, _copied(net))
    if (kept := training.restore()) is not None:  # every rank asks, and all get the same
        begun, state = kept
        best = (float(state["best_loss"]), state["best_epoch"], state["best"])
        _go_on(net, learner, state)
    together = DistributedDataParallel(net, broadcast_buffers=False)
    share = {"rank": training.rank, "world_size": training.world_size}
    for epoch in range(begun + 1, most + 1):
        losses = []
        for rows, y in training.train.loader(BATCH, shuffle=True, epoch=epoch, **share):
            learner.zero_grad()
            loss = _loss(together(rows.to(device)), y.to(device))
            loss.backward()  # the gradients of all ranks are averaged here
            learner.step()
            losses.append(float(loss.detach()))
        told = {"epochs": epoch, "most": most, "train_loss": float(np.mean(losses))}
        if training.validation is not None:
            told["validation_loss"] = loss = _mean_loss(net, training.validation, device)
            if loss < best[0]:
                best = (loss, epoch, _copied(net))
        training.report(epoch, **told)
        if training.validation is not None and epoch - best[1] >= PATIENCE:
            break
        training.checkpoint(epoch, lambda best=best: _so_far(net, learner, best))
    if training.rank:
        return None  # what rank 0 returns is the model
    if training.iterations is None:
        net.load_state_dict({name: torch.from_numpy(values) for name, values in best[2].items()})
    return Learned(net.cpu(), training.iterations or max(1, best[1]))


def _loss(told: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(told, y) if told.shape[1] > 1 else functional.mse_loss(told[:, 0], y)


def _mean_loss(net: Net, validation: Rows, device: torch.device) -> float:
    """Every rank works it out for all rows, so that all stop at the same epoch."""
    with torch.no_grad():
        losses = [(float(_loss(net(rows.to(device)), y.to(device))), len(y)) for rows, y in validation.loader(4096)]
    return sum(loss * count for loss, count in losses) / sum(count for _, count in losses)


# --- checkpoints: arrays and JSON, nothing that only torch can read ---


def _copied(net: Net) -> dict[str, np.ndarray]:
    return {name: values.detach().cpu().numpy().copy() for name, values in net.state_dict().items()}


def _so_far(net: Net, learner: torch.optim.Optimizer, best: tuple[float, int, Any]) -> dict[str, Any]:
    moments = {
        str(place): {name: values.detach().cpu().numpy().copy() for name, values in held.items()}
        for place, held in learner.state_dict()["state"].items()
    }
    known = {"best_loss": str(best[0]), "best_epoch": best[1], "best": best[2]}  # JSON has no infinity
    return known | {"weights": _copied(net), "moments": moments}


def _go_on(net: Net, learner: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    def tensors(held: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(np.array(values)) for name, values in held.items()}

    net.load_state_dict(tensors(state["weights"]))
    moments = {int(place): tensors(held) for place, held in state["moments"].items()}
    learner.load_state_dict({"state": moments, "param_groups": learner.state_dict()["param_groups"]})
