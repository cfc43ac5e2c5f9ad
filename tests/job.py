"""A job without its process: the context that compute functions get, in a folder of the test."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from activities.jobs.progress import reported
from everloop.artifacts import Artifacts
from everloop.records import Lease, Member


class FolderJob:
    """A job in a folder of the test. Checkpoints are kept in memory, whenever `due`."""

    def __init__(self, root: Path, *, due: bool = False) -> None:
        self.artifacts = Artifacts(str(root / "artifacts"))
        self.predictions_dir = root / "predictions"
        self.scratch = root / "scratch"
        self.scratch.mkdir(exist_ok=True)
        self.due = due
        self.told: list[int] = []
        self.values: dict[int, dict[str, float]] = {}
        self.kept: list[tuple[int, dict[str, Any]]] = []
        self.logged: dict[str, bytes] = {}
        self.stop = False
        self.cores = 1
        self.rank, self.world_size = 0, 1
        self.shrunk = 0
        """How often this stage has run out of memory."""
        self.shrinks = 0
        """How often it may, at most, as the function said."""
        self.lease = Lease(token=1, holder="test/run", members=(Member(device="cpu0"),))

    def limit(self) -> None:
        """There is no GPU."""

    def report(self, step: int, /, **values: float) -> None:
        number, known = reported(step, values)
        self.told.append(number)
        self.values[number] = known

    def checkpoint(
        self, step: int, state: Mapping[str, Any] | Callable[[], Mapping[str, Any]], *, at: str = ""
    ) -> bool:
        if self.due or self.stop:
            self.kept.append((step, dict(state() if callable(state) else state)))
        return self.due or self.stop

    def restore(self) -> tuple[int, dict[str, Any]] | None:
        return self.kept[-1] if self.kept else None

    def should_stop(self) -> bool:
        return self.stop

    def shrink(self, most: int = 3) -> int:
        self.shrinks = most
        return self.shrunk

    def log_artifact(self, name: str, data: bytes | Path) -> None:
        self.logged[name] = data if isinstance(data, bytes) else data.read_bytes()
