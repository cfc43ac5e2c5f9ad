"""A trainer that writes down, by itself and again and again, on which device it runs and with how many cores."""

import os
import threading
import time
from pathlib import Path

import numpy as np

from everloop.trainer import Training

EVERY_SECONDS = 0.05


class Constant:
    """Answers the mean."""

    def __init__(self, mean: float) -> None:
        self.mean = mean

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        return np.tile([1 - self.mean, self.mean], (len(rows), 1))


def fit(training: Training) -> Constant:
    member = training.lease.members[0]
    line = f"{os.getpid()} {training.lease.token} {member.device} {member.cores}"
    ends = threading.Event()

    def record() -> None:
        with Path(training.params["records"]).open("a", buffering=1) as records:
            while not ends.is_set():
                records.write(f"{time.time():.3f} {line}\n")
                ends.wait(EVERY_SECONDS)

    writer = threading.Thread(target=record, daemon=True)
    writer.start()
    for step in range(int(training.params["seconds"] / EVERY_SECONDS)):
        training.report(step)
        time.sleep(EVERY_SECONDS)
        if training.should_stop():
            break
    ends.set()
    writer.join()
    return Constant(float(np.mean(training.train.y)))
