"""A network in torch from a DataLoader, with early stopping and a checkpoint after each epoch.

trainer: "net:fit"
code: /path/to/examples/trainers/torch_net
inputs: features
params: {epochs: 30, width: 32}
"""

import copy

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from everloop.trainer import Learned, Training

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
    params = training.params
    net = Net(training.train.numpy(), params.get("width", 32), max(1, len(training.classes)))
    learner = torch.optim.Adam(net.parameters(), lr=params.get("rate", 0.01))
    best, best_loss, best_epoch = None, float("inf"), 0
    for epoch in range(1, (training.iterations or params.get("epochs", 30)) + 1):
        for rows, y in training.train.loader(256, shuffle=True):
            learner.zero_grad()
            _loss(net, rows, y).backward()
            learner.step()
        if training.iterations:
            training.report(epoch)
            continue
        loss = _validation_loss(net, training)
        training.report(epoch, validation_loss=loss)
        if loss < best_loss:
            best, best_loss, best_epoch = copy.deepcopy(net), loss, epoch
        if epoch - best_epoch >= PATIENCE or training.should_stop():
            break
    return Learned(best or net, training.iterations or best_epoch)


def _loss(net: Net, rows: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    told = net(rows)
    return functional.cross_entropy(told, y) if told.shape[1] > 1 else functional.mse_loss(told[:, 0], y)


def _validation_loss(net: Net, training: Training) -> float:
    net.eval()
    with torch.no_grad():
        losses = [(float(_loss(net, rows, y)), len(y)) for rows, y in training.validation.loader(4096)]
    net.train()
    return sum(loss * count for loss, count in losses) / sum(count for _, count in losses)
