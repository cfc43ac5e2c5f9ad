"""A network that several ranks train together on scikit-learn's digits, at some pace, and what each rank has seen."""

import hashlib
import os
import signal
import time
import traceback
from pathlib import Path

import numpy as np
import torch
from job_functions.words import Trial, Tried
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from activities.jobs.context import ThisJob

BATCH = 128
HELD_OUT = 400


def learn(request: Trial, job: ThisJob) -> Tried:
    """As `_learn`; where it is told to be stubborn, a rank whose gang breaks stays as if it waited for ever."""
    try:
        return _learn(request, job)
    except RuntimeError:
        if not request.values.get("stubborn"):
            raise
        traceback.print_exc()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
        raise


def _learn(request: Trial, job: ThisJob) -> Tried:
    """Epochs of DDP. A line of the diary: what, pid, time, epoch, rank, how many ranks, where they met."""
    values = request.values
    diary = Path(values["diary"])
    torch.manual_seed(0)
    torch.set_num_threads(1)
    job.join()
    numbers, y, order = _digits()
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    learner = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    kept = job.restore()
    begun = kept[0] if kept else 0
    if kept:
        _go_on(net, learner, kept[1])
    _note(diary, job, "begin", begun)
    together = DistributedDataParallel(net)
    for epoch in range(begun + 1, values["epochs"] + 1):
        shuffled = np.random.default_rng([0, epoch]).permutation(order[HELD_OUT:])
        for at in range(0, len(shuffled), BATCH):
            own = shuffled[at : at + BATCH][job.rank :: job.world_size]
            learner.zero_grad()
            loss = functional.cross_entropy(together(numbers[own]), y[own])
            loss.backward()
            learner.step()
        if values.get("raises") == [job.rank, epoch]:
            raise ValueError("rank says no")
        time.sleep(values["pace"])
        job.report(epoch, epochs=epoch, most=values["epochs"], train_loss=float(loss.detach()))
        _note(diary, job, "epoch", epoch)
        job.checkpoint(epoch, lambda: _so_far(net, learner))
    with torch.no_grad():
        told = net(numbers[order[:HELD_OUT]])
        loss = float(functional.cross_entropy(told, y[order[:HELD_OUT]]))
        accuracy = float((told.argmax(1) == y[order[:HELD_OUT]]).float().mean())
    _note(diary, job, "end", values["epochs"])
    weights = hashlib.sha256(b"".join(each.detach().numpy().tobytes() for each in net.parameters())).hexdigest()
    return Tried(values={"loss": loss, "accuracy": accuracy, "ranks": job.world_size, "weights": weights})


def _digits() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    found = load_digits()
    numbers = torch.from_numpy((found.data / 16).astype(np.float32))
    return numbers, torch.from_numpy(found.target.astype(np.int64)), np.random.default_rng(0).permutation(len(numbers))


def _note(diary: Path, job: ThisJob, what: str, epoch: int) -> None:
    with diary.open("a") as target:
        place = Path(job.rendezvous.folder).name or "-"
        target.write(f"{what} {os.getpid()} {time.time()} {epoch} {job.rank} {job.world_size} {place}\n")


def _so_far(net: nn.Module, learner: torch.optim.Optimizer) -> dict:
    moments = [each["momentum_buffer"].numpy().copy() for each in learner.state_dict()["state"].values()]
    return {"weights": [each.detach().numpy().copy() for each in net.parameters()], "moments": moments}


def _go_on(net: nn.Module, learner: torch.optim.Optimizer, state: dict) -> None:
    with torch.no_grad():
        for own, was in zip(net.parameters(), state["weights"], strict=True):
            own.copy_(torch.from_numpy(np.array(was)))
    moments = {i: {"momentum_buffer": torch.from_numpy(np.array(each))} for i, each in enumerate(state["moments"])}
    learner.load_state_dict({"state": moments, "param_groups": learner.state_dict()["param_groups"]})
