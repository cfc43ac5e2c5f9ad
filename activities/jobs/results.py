"""What an outcome means: a result, or the error that says what helps."""

from typing import Any

from activities.jobs.order import Outcome
from everloop import errors
from everloop.records import Lease, Ran

MOST_CRASHES = 3
"""Of one activity, over all its attempts and tokens."""


def result(outcome: Outcome) -> dict[str, Any]:
    """What the function returned. Raises what it raised, `JobFailed`, or `ComputeLost`."""
    if "result" in outcome:
        return outcome["result"]
    if "error" in outcome:
        raise _error(**outcome["error"], kept=outcome.get("artifacts", []))
    if "crash" not in outcome:
        raise errors.ComputeLost("the job was ended because nobody waited for it any more")
    if outcome["crashes"] >= MOST_CRASHES:
        raise errors.JobFailed(
            f"the job crashed {outcome['crashes']} times, the last time by {outcome['crash']}",
            hint="its log shows how far it came",
        )
    raise errors.ComputeLost(f"the job was ended by {outcome['crash']}")


def _error(error: str, message: str, field: str, hint: str, kept: list[dict[str, Any]]) -> errors.EverloopError:
    kind = errors.family().get(error, errors.JobFailed)
    made = kind(message, field=field, hint=hint)
    made.kept = kept
    return made


def ran(lease: Lease, outcome: Outcome, attempt: int) -> Ran:
    """How it ran, for people."""
    return Ran(
        device=lease.members[0].device,
        token=lease.token,
        attempt=attempt,
        seconds=round(outcome["seconds"], 3),
        kept=outcome.get("kept", False),
        log=outcome["log"],
        resumed=outcome.get("resumed"),
        artifacts=outcome.get("artifacts", ()),
        members=lease.members if len(lease.members) > 1 else (),
    )
