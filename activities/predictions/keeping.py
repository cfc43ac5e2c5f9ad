"""Keeping the log: lines become Parquet, small files larger ones, and what is old is removed.

The new files are made beside the old ones; one transaction lets the index name them in place of these. Whenever
somebody is killed: before it the old files count and the new ones are removed, after it the new ones count. Files that
count no more stay for an hour, for readers that have begun.
"""

import asyncio
import contextlib
import logging
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlmodel import Session, col, delete, select

from activities.predictions import child
from activities.predictions.asked import Compact, Compacted
from activities.predictions.index import LogIndex
from everloop.artifacts import Artifacts
from everloop.errors import EverloopError
from everloop.predictions import LogPart, Piece
from everloop.predictions.parts import PARQUET
from everloop.predictions.refusals import forget_before
from everloop.records import Signature
from everloop.specs import LifecycleSpec
from everloop.store import LogHourRow, LogPartRow, MonitorRow, Store

log = logging.getLogger(__name__)

WORTH_ROWS = 10_000
"""Closed lines become Parquet when there are so many,"""
OLD = timedelta(days=1)
"""or when they are so old."""
MOST_ROWS = 1_000_000
"""Made into Parquet at once: they are in memory then."""
SMALL_ROWS = 250_000
MANY_SMALL = 8
"""So many small files of one day and version become one."""
GRACE = timedelta(hours=1)
"""What was replaced stays so long."""
STALE = timedelta(seconds=child.SECONDS + 60)
"""A compaction that began so long ago has been killed."""
REMOVING = "-"
"""Before the name of a run whose files are being removed."""


@dataclass(frozen=True)
class LogKeeper:
    """Keeps every model's log. Safe to run in several processes: a model has one compaction at a time."""

    store: Store
    artifacts: Artifacts
    predictions_dir: Path
    grace: timedelta = GRACE
    stale: timedelta = STALE
    worth_rows: int = WORTH_ROWS

    async def sweep(self) -> None:
        """One look at all of them."""
        for index in await asyncio.to_thread(self._every):
            try:
                await self.keep(index)
            except Exception:  # of one model: the others' logs are kept all the same
                log.exception("the log of %s/%s is not kept; it is tried again", index.project, index.model)

    async def keep(self, index: LogIndex) -> None:
        """One look at one: count what is new, remove what is old, compact what is due."""
        await asyncio.to_thread(index.refresh)
        await asyncio.to_thread(self._tidy, index)
        asked = await asyncio.to_thread(self._begin, index)
        if asked is None:
            return
        try:
            made = await child.run("compact", asked, Compacted)
        except EverloopError as error:
            log.warning("the log of %s/%s is not compacted: %s", index.project, index.model, error)
            await asyncio.to_thread(self._give_up, index, asked.run)
            return
        if not await asyncio.to_thread(self._flip, index, asked, made):
            log.warning("a compaction of %s/%s came too late", index.project, index.model)

    def _every(self) -> list[LogIndex]:
        folders = sorted(self.predictions_dir.glob("*/*"))
        return [
            LogIndex(self.store, self.predictions_dir, folder.parent.name, folder.name)
            for folder in folders
            if folder.is_dir()
        ]

    # --- compaction ---------------------------------------------------------------------------

    def _begin(self, index: LogIndex) -> Compact | None:
        """Take what is due, and the right to compact it. None: nothing is due, or another does it."""
        now = datetime.now(UTC)
        with self.store.write() as session:
            state = index.state(session)
            chosen = [] if state.run else self._due(session, index, now)
            if not chosen:
                return None
            signatures = index.signatures(session, {row.version for row in chosen})
            state.run, state.run_started = uuid.uuid4().hex[:12], now
            session.add(state)
        known = {
            version: Signature.model_validate_json(self.artifacts.get(blob)) for version, blob in signatures.items()
        }
        parts = tuple(LogPart.model_validate(row, from_attributes=True) for row in chosen)
        return Compact(folder=str(index.folder), run=state.run, parts=parts, signatures=known)

    def _due(self, session: Session, index: LogIndex, now: datetime) -> list[LogPartRow]:
        rows = _counting(session, index)
        closed = [row for row in rows if row.kind == "lines" and row.closed_at and row.rows and not row.stays]
        is_old = any(row.logged_until and row.logged_until < now - OLD for row in closed)
        if sum(row.rows for row in closed) >= self.worth_rows or is_old:
            return _up_to(closed, MOST_ROWS)
        small = defaultdict(list)
        for row in rows:
            if row.kind == "parquet" and row.rows < SMALL_ROWS:
                small[Path(row.name).parent.name, row.version].append(row)
        most = max(small.values(), key=len, default=[])
        return _up_to(most, MOST_ROWS) if len(most) >= MANY_SMALL else []

    def _flip(self, index: LogIndex, asked: Compact, made: Compacted) -> bool:
        """Let the new files count in place of the old ones. False: they changed, or another has taken over."""
        now = datetime.now(UTC)
        with self.store.write() as session:
            state = index.state(session)
            if state.run != asked.run:
                return False
            rows = {row.name: row for row in _counting(session, index)}
            if any(part.name not in rows or rows[part.name].bytes != part.bytes for part in asked.parts):
                return False
            for name in made.stay:
                rows[name].stays = True
                session.add(rows[name])
            gone = [rows[part.name] for part in asked.parts if part.name not in made.stay]
            hours = _hours_of(session, index, [row.name for row in gone])
            for row in gone:
                row.replaced_at = now
                session.add(row)
            _forget_hours(session, index, [row.name for row in gone])
            for piece in made.pieces:
                _add_piece(session, index, piece, hours, now)
            state.run, state.run_started = "", None
            session.add(state)
        return True

    def _give_up(self, index: LogIndex, run: str) -> None:
        """Remove what a run has made; only then may another begin."""
        with self.store.write() as session:
            state = index.state(session)
            if state.run not in (run, REMOVING + run):
                return  # it has succeeded, or was given up by another
            state.run = REMOVING + run
            session.add(state)
        for path in index.folder.glob(f"{PARQUET}/day=*/v*-{run}.parquet*"):
            path.unlink(missing_ok=True)
        with self.store.write() as session:
            state = index.state(session)
            if state.run == REMOVING + run:
                state.run, state.run_started = "", None
                session.add(state)

    # --- what is removed ----------------------------------------------------------------------

    def _tidy(self, index: LogIndex) -> None:
        now = datetime.now(UTC)
        with self.store.read() as session:
            state = index.state(session)
            monitor = session.get(MonitorRow, (index.project, index.model))
        if state.run and state.run_started and now - state.run_started > self.stale:
            self._give_up(index, state.run.removeprefix(REMOVING))
        keep = LifecycleSpec.model_validate_json(monitor.spec).log.keep if monitor else None
        if keep is not None:
            self._expire(index, now - keep, now)
            forget_before(index.folder, now - keep)
        self._drop_empty(index, now)
        self._remove_replaced(index, now - self.grace)

    def _expire(self, index: LogIndex, before: datetime, now: datetime) -> None:
        """What was logged before then counts no more."""
        with self.store.write() as session:
            old = [
                row
                for row in _counting(session, index)
                if row.logged_until and row.logged_until < before and (row.kind == "parquet" or row.closed_at)
            ]
            if not old:
                return
            state = index.state(session)
            state.removed_rows += sum(row.rows for row in old)
            session.add(state)
            for row in old:
                row.replaced_at = now
                session.add(row)
            _forget_hours(session, index, [row.name for row in old])

    def _drop_empty(self, index: LogIndex, now: datetime) -> None:
        """Files that were made ready and never written to."""
        with self.store.read() as session:
            if not [row for row in _counting(session, index) if row.closed_at and not row.bytes]:
                return
        with self.store.write() as session:
            for row in _counting(session, index):
                if row.closed_at and not row.bytes:
                    row.replaced_at = now
                    session.add(row)

    def _remove_replaced(self, index: LogIndex, before: datetime) -> None:
        with self.store.read() as session:
            query = select(LogPartRow).where(
                LogPartRow.project == index.project,
                LogPartRow.model == index.model,
                col(LogPartRow.replaced_at).is_not(None),
                col(LogPartRow.replaced_at) < before,
            )
            rows = session.exec(query).all()
        for row in rows:
            path = index.folder / row.name
            path.unlink(missing_ok=True)  # first the file: without its row it would be counted again
            with contextlib.suppress(OSError):
                path.parent.rmdir()
        if rows:
            with self.store.write() as session:
                for row in rows:
                    session.delete(row)


def _counting(session: Session, index: LogIndex) -> Sequence[LogPartRow]:
    """The files that count, as a reader is given them."""
    query = select(LogPartRow).where(
        LogPartRow.project == index.project, LogPartRow.model == index.model, col(LogPartRow.replaced_at).is_(None)
    )
    return session.exec(query.order_by(LogPartRow.name)).all()


def _up_to(rows: Sequence[LogPartRow], most: int) -> list[LogPartRow]:
    """As many as are worked on at once; the first one whatever it holds."""
    chosen: list[LogPartRow] = []
    held = 0
    for row in sorted(rows, key=lambda each: each.logged_until or datetime.min.replace(tzinfo=UTC)):
        if chosen and held + row.rows > most:
            break
        chosen.append(row)
        held += row.rows
    return chosen


def _hours_of(session: Session, index: LogIndex, names: Sequence[str]) -> dict[datetime, tuple[datetime, int]]:
    """By hour of event time: until when it was logged, and how many rows came late and are not yet counted."""
    found: dict[datetime, tuple[datetime, int]] = {}
    query = select(LogHourRow).where(
        LogHourRow.project == index.project, LogHourRow.model == index.model, col(LogHourRow.name).in_(names)
    )
    for row in session.exec(query):
        until, late = found.get(row.hour, (row.logged_until, 0))
        found[row.hour] = max(until, row.logged_until), late + row.late
    return found


def _forget_hours(session: Session, index: LogIndex, names: Sequence[str]) -> None:
    session.exec(
        delete(LogHourRow).where(
            col(LogHourRow.project) == index.project,
            col(LogHourRow.model) == index.model,
            col(LogHourRow.name).in_(names),
        )
    )


def _add_piece(
    session: Session, index: LogIndex, piece: Piece, hours: dict[datetime, tuple[datetime, int]], now: datetime
) -> None:
    untils = []
    for each in piece.hours:
        until, late = hours.get(each.hour, (now, 0))
        hours[each.hour] = until, 0  # counted once, whichever file has the hour too
        untils.append(until)
        session.add(
            LogHourRow(
                project=index.project,
                model=index.model,
                name=piece.name,
                hour=each.hour,
                rows=each.rows,
                late=late,
                first_event=each.first,
                last_event=each.last,
                logged_until=until,
            )
        )
    session.add(
        LogPartRow(
            project=index.project,
            model=index.model,
            name=piece.name,
            kind="parquet",
            version=piece.version,
            bytes=piece.bytes,
            rows=piece.rows,
            first_event=piece.hours[0].first,
            last_event=piece.hours[-1].last,
            logged_until=max(untils),
            closed_at=now,
        )
    )
