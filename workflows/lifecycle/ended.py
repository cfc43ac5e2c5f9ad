"""How a lifecycle ends before its release, and why a child of it has ended."""

from temporalio.exceptions import TerminatedError


class Ended(Exception):  # noqa: N818  # control flow: the lifecycle ends here, as it should
    """The lifecycle ends before its release, with an outcome and a reason."""

    def __init__(self, outcome: str, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.reason = reason


def innermost(error: BaseException) -> str:
    if isinstance(error.__cause__, TerminatedError):
        return "it was terminated in Temporal"
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)
