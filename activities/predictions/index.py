"""The index of a model's log: what a check needs to know of it, from SQL."""

import re
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import ColumnElement, func, or_
from sqlmodel import Session, col, select

from activities.predictions.counting import Counted, counted
from everloop.predictions import LogPart, LogParts, line_files
from everloop.records import Blob, Version, Window
from everloop.store import LogHourRow, LogPartRow, LogStateRow, Store, VersionRow

AT_ONCE_BYTES = 32 << 20
"""Counted at most between two transactions."""
VERSION = re.compile(r"(?:^|/)v(\d+)-")

_locks: defaultdict[tuple[str, str, str], threading.RLock] = defaultdict(threading.RLock)
"""By database, project and model: of many who ask at once, one counts."""


@dataclass(frozen=True)
class LogIndex:
    """What is known of a model's log. Control alone refreshes it; anybody with the database may ask."""

    store: Store
    predictions_dir: Path
    project: str
    model: str

    @property
    def folder(self) -> Path:
        return self.predictions_dir / self.project / self.model

    def below(self, names: Iterable[str]) -> tuple[str, ...]:
        """Files *names* of the model's folder as they are called below `predictions_dir`."""
        return tuple(f"{self.project}/{self.model}/{name}" for name in names)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """In the block nobody else of this process counts or closes a window of the model."""
        with _locks[self.store.url, self.project, self.model]:
            yield

    def refresh(self, now: datetime | None = None) -> None:
        """Count what was appended since the last time."""
        with self.alone():
            while self._step(now or datetime.now(UTC)):
                pass

    def first(self) -> datetime | None:
        """The earliest event time, or None while nothing is logged."""
        return self._minimum(LogHourRow.first_event)

    def first_at_or_after(self, since: datetime) -> datetime | None:
        """The earliest event time that is not before *since*: to the hour, where *since* is within one."""
        found = self._minimum(
            LogHourRow.first_event, col(LogHourRow.hour) >= _hour(since), col(LogHourRow.last_event) >= since
        )
        return None if found is None else max(found, since)

    def closed(self, until: datetime, now: datetime) -> bool:
        """Has a row with *until* <= event time <= *now* been logged?

        A row ahead of the clock closes nothing: it says nothing about what came before it.
        """
        within = [
            (col(bound) >= until) & (col(bound) <= now) for bound in (LogHourRow.first_event, LogHourRow.last_event)
        ]
        hours = (col(LogHourRow.hour) >= _hour(until), col(LogHourRow.hour) <= now)
        return self._minimum(LogHourRow.hour, *hours, or_(*within)) is not None

    def last_write(self, now: datetime) -> datetime | None:
        """When a row was last logged, by the disk's clock; rows of hours after *now* are not asked about."""
        with self.store.read() as session:
            query = select(func.max(LogHourRow.logged_until)).where(*self._hours(), col(LogHourRow.hour) <= now)
            return session.exec(query).one()

    def rows(self, window: Window) -> int:
        """Lines of a window of whole hours: at most so many rows, for one that is sent again counts twice."""
        with self.store.read() as session:
            hours = (col(LogHourRow.hour) >= window.start, col(LogHourRow.hour) < window.end)
            return session.exec(select(func.sum(LogHourRow.rows)).where(*self._hours(), *hours)).one() or 0

    def parts(self, window: Window | None = None) -> LogParts:
        """The files to read for a window, or for all. What is replaced meanwhile stays for a while."""
        query = select(LogPartRow).where(*self._parts(), col(LogPartRow.rows) > 0).order_by(LogPartRow.name)
        if window is not None:
            query = query.where(col(LogPartRow.first_event) < window.end, col(LogPartRow.last_event) >= window.start)
        with self.store.read() as session:
            found = session.exec(query).all()
            return LogParts(
                parts=tuple(LogPart.model_validate(row, from_attributes=True) for row in found),
                signatures=self.signatures(session, {row.version for row in found}),
            )

    def signatures(self, session: Session, versions: set[int]) -> dict[int, Blob]:
        """Of the registered ones among *versions*; 0 among them stands for any."""
        query = select(VersionRow).where(VersionRow.project == self.project, VersionRow.model == self.model)
        if 0 not in versions:
            query = query.where(col(VersionRow.number).in_(versions))
        return {
            row.number: Version.model_validate_json(row.record).exported.signature for row in session.exec(query).all()
        }

    def close(self, until: datetime) -> None:
        """Windows up to *until* have closed: what is counted from now on, and was before, came late."""
        with self.store.write() as session:
            state = self.state(session)
            state.closed_until = max(state.closed_until or until, until)
            session.add(state)

    def state(self, session: Session) -> LogStateRow:
        key = (self.project, self.model)
        return session.get(LogStateRow, key) or LogStateRow(project=self.project, model=self.model)

    def _minimum(self, column: datetime, *conditions: ColumnElement[bool] | bool) -> datetime | None:
        with self.store.read() as session:
            return session.exec(select(func.min(column)).where(*self._hours(), *conditions)).one()

    def _hours(self) -> tuple[ColumnElement[bool], ...]:
        return (col(LogHourRow.project) == self.project, col(LogHourRow.model) == self.model)

    def _parts(self) -> tuple[ColumnElement[bool], ...]:
        return (
            col(LogPartRow.project) == self.project,
            col(LogPartRow.model) == self.model,
            col(LogPartRow.replaced_at).is_(None),
        )

    def _step(self, now: datetime) -> bool:
        """Count some of what is new. Was there more? Not what is appended meanwhile: that may go on for ever."""
        with self.store.read() as session:
            query = select(LogPartRow.name, LogPartRow.bytes, LogPartRow.closed_at, LogPartRow.replaced_at).where(
                LogPartRow.project == self.project, LogPartRow.model == self.model, LogPartRow.kind == "lines"
            )
            known = {name: (size, closed or replaced) for name, size, closed, replaced in session.exec(query)}
        news, size, more = [], 0, False
        for name in line_files(self.folder):
            start, done = known.get(name, (0, None))
            if done is not None:
                continue
            try:
                found = counted(self.folder, name, start, now)
            except FileNotFoundError:
                continue  # removed between the list and now
            if found.is_news:
                news.append(found)
                size += found.end - found.start
                more = more or found.more
            if size >= AT_ONCE_BYTES:
                more = True
                break
        if news:
            self._keep(news, now)
        return more

    def _keep(self, news: list[Counted], now: datetime) -> None:
        with self.store.write() as session:
            closed_until = self.state(session).closed_until
            for found in news:
                row = session.get(LogPartRow, (self.project, self.model, found.name))
                if row is None and found.start == 0:
                    version = VERSION.search(found.name)
                    row = LogPartRow(
                        project=self.project,
                        model=self.model,
                        name=found.name,
                        kind="lines",
                        version=int(version[1]) if version and found.name.startswith("live/") else 0,
                    )
                if row is None or row.bytes != found.start or row.replaced_at is not None:
                    continue  # another process has counted it meanwhile
                self._add(session, row, found, closed_until, now)

    def _add(
        self, session: Session, row: LogPartRow, found: Counted, closed_until: datetime | None, now: datetime
    ) -> None:
        row.bytes = found.end
        row.rows += found.rows
        row.torn += found.torn
        row.logged_until = found.modified
        row.closed_at = now if found.closed else None
        if found.hours:
            row.first_event = min(filter(None, (row.first_event, *(each.first for each in found.hours.values()))))
            row.last_event = max(filter(None, (row.last_event, *(each.last for each in found.hours.values()))))
            between = (col(LogHourRow.hour) >= min(found.hours), col(LogHourRow.hour) <= max(found.hours))
            query = select(LogHourRow).where(*self._hours(), LogHourRow.name == row.name, *between)
            known = {each.hour: each for each in session.exec(query)}
            for hour, count in found.hours.items():
                kept = known.get(hour) or LogHourRow(
                    project=self.project,
                    model=self.model,
                    name=row.name,
                    hour=hour,
                    first_event=count.first,
                    last_event=count.last,
                    logged_until=found.modified,
                )
                kept.rows += count.rows
                kept.late += count.rows if closed_until is not None and hour < closed_until else 0
                kept.first_event, kept.last_event = min(kept.first_event, count.first), max(kept.last_event, count.last)
                kept.logged_until = max(kept.logged_until, found.modified)
                session.add(kept)
        session.add(row)


def _hour(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
