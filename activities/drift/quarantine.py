"""Data that is broken rather than moved: no retraining until a person says that it is mended, or meant so."""

from everloop.contracts import TriggerRequest
from everloop.records import Break
from everloop.store import MonitorRow

MOST_TOLD = 5
"""Broken columns named in a reason."""


def quarantined(monitor: MonitorRow, request: TriggerRequest) -> str:
    """Put the window's data into quarantine where it is broken and nobody has said that it is meant so. Says why."""
    rules = request.spec.monitor
    known = set(monitor.accepted)
    broken = [each for each in request.broken if accepting(request.version, each) not in known]
    if not broken or rules is None or not rules.quarantine:
        return ""
    if monitor.quarantined_at is None:
        monitor.quarantined_at = request.window.end
    there = {(each["column"], each["kind"]) for each in monitor.quarantine}
    fresh = [each.model_dump(mode="json") for each in broken if (each.column, each.kind) not in there]
    monitor.quarantine = [*monitor.quarantine, *fresh]
    told = "; ".join(f"{each.column!r}: {each.why}" for each in broken[:MOST_TOLD])
    more = f" and {len(broken) - MOST_TOLD} columns more" if len(broken) > MOST_TOLD else ""
    return f"the data is broken, not moved: {told}{more}; {_until_lifted(monitor)}"


def still_quarantined(monitor: MonitorRow) -> str:
    columns = ", ".join(repr(each["column"]) for each in monitor.quarantine[:MOST_TOLD])
    return f"{columns} broke in a window before and nobody has said that it is mended; {_until_lifted(monitor)}"


def _until_lifted(monitor: MonitorRow) -> str:
    return f"no retraining until a person says `everloop lift-quarantine {monitor.model}`"


def accepting(version: int, broken: Break) -> str:
    """How a person's word that a column is as it should be is kept."""
    return f"{version} {broken.kind} {broken.column}"
