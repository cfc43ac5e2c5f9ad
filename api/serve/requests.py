"""What a predict request holds: rows, when they happened, and what the log keeps beside them."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StrictInt, StrictStr, StringConstraints

from activities.compute.inference import moment
from api.serve.version import Meaning
from everloop.errors import InvalidPrediction
from everloop.reading import ReadColumn
from everloop.texts import is_missing, moment_of, trimmed

MAX_ROWS = 10_000
AHEAD = timedelta(days=1)
EARLIEST = datetime(1500, 1, 1, tzinfo=UTC)
"""What a table may say too, see `activities.compute.data`."""

UNITS_SAID = {
    "year": "a year (2013)",
    "day": "a day (20130131)",
    "seconds": "seconds since 1970",
    "milliseconds": "milliseconds since 1970",
}
"""How a number in a time column is told to people; see `activities.compute.inference.UNITS`."""

Row = dict[str, Any]
Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Key = StrictStr | StrictInt | None


class PredictRequest(BaseModel):
    """Rows to answer: one `row`, or `rows`; and what the log keeps beside them."""

    model_config = ConfigDict(extra="forbid")

    row: Row | None = None
    rows: list[Row] | None = None
    request_id: Text | None = None
    """Names this request in the log: the same id again counts once. Made up when left out."""
    key: Key = None
    keys: list[Key] | None = None
    event_time: datetime | None = None
    """When it happened, for every row; a row may say `event_time` or the model's time column itself."""
    event_times: list[datetime] | None = None


class PredictAnswer(BaseModel):
    """Answers in the order of the rows."""

    model: str
    version: int
    release_seq: int
    request_id: str
    predictions: list[dict[str, Any]]
    ahead_of_clock: list[int] = []
    """Rows, by index, whose event time lies ahead of the server's clock: they close no window of the monitor."""


def rows_of(body: PredictRequest) -> list[Row]:
    """The rows of a request. Raises `InvalidPrediction` unless there are 1 to 10,000."""
    if (body.row is None) == (body.rows is None):
        raise InvalidPrediction("send either `row` or `rows`", field="rows", hint='{"row": {...}} or {"rows": [{...}]}')
    rows = [body.row] if body.row is not None else body.rows or []
    if not rows:
        raise InvalidPrediction("there are no rows", field="rows", hint="send at least one")
    if len(rows) > MAX_ROWS:
        raise InvalidPrediction(
            f"{len(rows):,} rows are too many", field="rows", hint=f"send at most {MAX_ROWS:,} in one request"
        )
    return rows


def moments_of(body: PredictRequest, rows: Sequence[Row], meaning: Meaning, now: datetime) -> list[datetime]:
    """Each row's event time: its own time column, its `event_time`, the request's, else now."""
    _same_length("event_times", body.event_times, rows)
    signature, said, found = meaning.signature, body.event_time, []
    for index, row in enumerate(rows):
        where, value = "event_time", said or now
        if body.event_times is not None:
            where, value = f"event_times[{index}]", body.event_times[index]
        for name in meaning.times:
            own = name == signature.time
            if row.get(name) is not None and not (own and _no_time(row[name], signature.time_read)):
                layouts, read = (signature.time_layouts, signature.time_read) if own else ((), None)
                where, value = f"rows[{index}].{name}", _moment(row[name], layouts, f"rows[{index}].{name}", read)
                break
        found.append(now if value is now else _bounded(value, where, now))
    return found


def _no_time(value: object, read: ReadColumn | None) -> bool:
    """Does the table mean by *value* that the time is not known?"""
    if read is None or not isinstance(value, str | int | float):
        return False
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return is_missing(trimmed(text, read), read, quoted=isinstance(value, str))


def _moment(value: object, layouts: Sequence[str], where: str, read: ReadColumn | None = None) -> datetime:
    """*read*: how the table's own time is read; what is no time there is none here."""
    try:
        if read is not None and read.type == "datetime" and isinstance(value, str):
            return moment_of(trimmed(value, read), read.format)
        return moment(value, layouts)
    except ValueError:
        also = f", or {' or '.join(UNITS_SAID.get(one, one) for one in layouts)} as in the table" if layouts else ""
        raise InvalidPrediction(
            f"{where} is not a moment", field=where, hint=f"expected ISO 8601 text such as 2013-01-31T12:00:00Z{also}"
        ) from None


def _bounded(value: datetime, where: str, now: datetime) -> datetime:
    try:
        moment = (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError:
        moment = None
    if moment is None or not EARLIEST <= moment <= now + AHEAD:
        raise InvalidPrediction(
            f"{where} must lie between 1500 and a day from now", field=where, hint="send when it happened, in UTC"
        )
    return moment


def keys_of(body: PredictRequest, rows: Sequence[Row], meaning: Meaning) -> list[Key]:
    """Each row's key: its own key column, its `key`, the request's, else none."""
    _same_length("keys", body.keys, rows)
    found: list[Key] = []
    for index, row in enumerate(rows):
        value = body.keys[index] if body.keys is not None else body.key
        for name in meaning.keys:
            if row.get(name) is not None:
                value = row[name]
                break
        if value is not None and not isinstance(value, str | int | float):
            raise InvalidPrediction(f"the key of row {index} is neither text nor a number", field=f"rows[{index}].key")
        found.append(value)
    return found


def _same_length(name: str, given: Sequence[object] | None, rows: Sequence[Row]) -> None:
    if given is not None and len(given) != len(rows):
        raise InvalidPrediction(
            f"{name} has {len(given)} entries for {len(rows)} rows", field=name, hint="send one for each row"
        )
