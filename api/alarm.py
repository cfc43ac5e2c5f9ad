"""What is said of open workflows that cannot go on, and which command helps."""

from dataclasses import dataclass

from sqlmodel import Session, col, select

from everloop import names
from everloop.settings import Settings
from everloop.store import AlarmRow


@dataclass(frozen=True)
class Alarm:
    """An alarm as people read it."""

    workflow_id: str
    lifecycle: str
    sentence: str
    help: str
    """A command that ends it, where no mended worker is at hand."""
    row: AlarmRow


def all_of(session: Session, settings: Settings) -> list[Alarm]:
    """Every alarm, oldest first."""
    return [_alarm(row, settings) for row in session.exec(select(AlarmRow).order_by(col(AlarmRow.since)))]


def of(session: Session, settings: Settings, lifecycle: str) -> Alarm | None:
    """The alarm of a lifecycle or of its gate."""
    rows = session.exec(select(AlarmRow).where(AlarmRow.lifecycle == lifecycle)).all()
    first = min(rows, key=lambda row: row.workflow_id != lifecycle, default=None)
    return _alarm(first, settings) if first else None


def _alarm(row: AlarmRow, settings: Settings) -> Alarm:
    return Alarm(row.workflow_id, row.lifecycle, _sentence(row), _help(row, settings), row)


def _sentence(row: AlarmRow) -> str:
    what = {
        names.LIFECYCLE: "This lifecycle",
        names.APPROVAL: "The gate of this lifecycle",
        names.SEARCH: "The search of this lifecycle",
        names.GPU_POOL: f"The pool {row.workflow_id}",
    }.get(row.workflow_type, row.workflow_id)
    then = (
        "it is replaced by itself"
        if row.workflow_type == names.GPU_POOL
        else "nothing that it is told has an effect; a control worker that can run it goes on with it: "
        "install a mended version, then `everloop down` and `everloop up`; or end it"
    )
    return (
        f"{what} cannot go on: its workflow task has failed since {row.since:%Y-%m-%d %H:%M:%S} UTC "
        f"({row.message}); {then}"
    )


def _help(row: AlarmRow, settings: Settings) -> str:
    if row.workflow_type == names.GPU_POOL:
        return ""
    where = f"--address {settings.temporal} --namespace {settings.temporal_namespace}"
    return f"temporal workflow terminate {where} --workflow-id {row.workflow_id}"
