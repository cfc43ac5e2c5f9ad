"""Which window of event time has closed, and rows that came after theirs had."""

from bisect import bisect_right
from datetime import datetime

from sqlmodel import col, select

from activities.drift.ledger import decided
from activities.predictions.index import LogIndex
from everloop.predictions.refusals import first_refused
from everloop.records import Window
from everloop.specs import Monitor
from everloop.store import LogHourRow, MonitorRow, Store
from everloop.windows import begins, window_of


def next_closed(log: LogIndex, monitor: Monitor, cursor: datetime | None, now: datetime) -> Window | None:
    """The first window that begins at or after *cursor*, holds a row and has closed, else None.

    It closes when its end is past by the clock, and then by event time (a row later than its end by `lateness`), or
    by silence (nothing was answered for `idle`). Rows ahead of the clock are no watermark: they are ordinary rows when
    their time comes. Windows without a row are passed over.
    A row that was refused is none, and closes nothing: who sent it will send it again. `minimum_rows` of them are a
    window all the same, which says that nothing can be answered any more.
    """
    window = next_with_a_row(log, monitor, cursor, now)
    if window is None or window.end > now:
        return None
    until = window.end + monitor.lateness
    if log.closed(until, now):
        return window
    last = log.last_write(now)
    silent = last is None or now - last >= monitor.idle
    return window if silent and now >= until else None


def next_with_a_row(log: LogIndex, monitor: Monitor, cursor: datetime | None, now: datetime) -> Window | None:
    since = None if cursor is None else begins(cursor, monitor.window)
    answered = log.first() if since is None else log.first_at_or_after(since)
    refused = first_refused(log.folder, since, now, monitor.window, monitor.minimum_rows)
    first = min(filter(None, (answered, refused)), default=None)
    return None if first is None or first > now else window_of(first, monitor.window)


def count_late_rows(store: Store, monitor: MonitorRow) -> None:
    """Add to each decided window the rows that came after it had closed, and were not yet added."""
    if monitor.cursor is None:
        return
    of_model = (LogHourRow.project == monitor.project, LogHourRow.model == monitor.model)
    late = select(LogHourRow).where(*of_model, col(LogHourRow.hour) < monitor.cursor, LogHourRow.late > 0)
    with store.read() as session:
        if session.exec(late).first() is None:
            return
    with store.write() as session:
        windows = session.exec(decided(monitor)).all()
        for row in session.exec(late).all():
            place = bisect_right(windows, row.hour, key=lambda window: window.window_start) - 1
            if place >= 0 and row.hour < windows[place].window_end:
                windows[place].late_rows += row.late
                session.add(windows[place])
            row.late = 0
            session.add(row)
