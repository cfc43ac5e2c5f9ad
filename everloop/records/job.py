"""How a stage's job ran."""

from everloop.records.lease import Member
from everloop.records.record import Blob, Record


class Resumed(Record):
    """What a stage did again because attempts of it were ended, and what it did not."""

    times: int
    """Attempts that went on after another."""
    step: int
    """From where the last one went on: rounds, epochs, or what its function counts. 0: from the beginning."""
    token: int
    """Of the checkpoint it went on from."""
    steps_again: int
    """Over all attempts."""
    seconds_again: float
    at: str = ""
    """The step as its trainer calls it: `round 120 of at most 400`. Empty: an older Everloop kept the checkpoint."""

    def sentence(self, unit: str = "step") -> str:
        """For people: what was kept and what was done again. *unit*: of a step that has no name."""
        again = f"{self.seconds_again:.0f} s of work done again"
        often = f" {self.times} times, at last" if self.times > 1 else ""
        if not self.step:
            return f"begun again{often} without a checkpoint; {again}"
        at = self.at or f"{unit} {self.step:,}"
        return f"resumed{often} at {at} from a checkpoint of token {self.token}; {again}"


class Ran(Record):
    """How a job ran: what `everloop logs` and the lifecycle page show of an attempt."""

    device: str
    token: int
    attempt: int
    seconds: float
    kept: bool = False
    """An earlier attempt had already finished: its result was found and nothing was done again."""
    log: str = ""
    """Path of the log below the logs folder: `jobs/<run id>/<activity id>/<attempt>.log`."""
    resumed: Resumed | None = None
    """What was kept of earlier attempts, and what was done again."""
    artifacts: tuple[Blob, ...] = ()
    """Files that the job kept for people, by name."""
    members: tuple[Member, ...] = ()
    """Of a gang: where its ranks ran. None: one process on `device`."""


class Result(Record):
    """A compute stage's result; `ran` is filled in by the activity."""

    ran: Ran | None = None
