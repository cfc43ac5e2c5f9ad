"""From a request to the bytes of its answer: check, predict, log, answer; from one version throughout."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from api.serve.fleet import Fleet
from api.serve.proof import Name
from api.serve.requests import PredictRequest, keys_of, moments_of, rows_of
from api.serve.version import Served
from everloop.errors import InvalidPrediction

SKEW = timedelta(minutes=1)
"""Clocks differ: only what lies further ahead is said to be ahead of the clock."""


def answer(serving: Fleet, name: Name, body: PredictRequest, made_up: str) -> bytes:
    """A `PredictAnswer` as JSON. Every row is with the kernel, in the prediction log, when this returns.

    *made_up*: names the request where it does not name itself.
    Raises `InvalidPrediction` with the field, `NotFound`, and `StorageLow` or `Unavailable` where it cannot be logged.
    """
    served = serving.get(name)
    meaning, rows, now = served.meaning, rows_of(body), datetime.now(UTC)
    moments = moments_of(body, rows, meaning, now)
    keys = keys_of(body, rows, meaning)
    asked = [meaning.asked(row) for row in rows]
    try:
        predictions = served.model.answer(asked, moments).rows()
    except InvalidPrediction as error:
        serving.refusals_of(name).note(error.field or "", moments)
        raise
    latest = now + SKEW
    ahead = [index for index, moment in enumerate(moments) if moment > latest]
    request_id = body.request_id or made_up
    lines = _lines(
        served,
        request_id=request_id,
        asked=asked,
        keys=keys,
        moments=moments,
        predictions=predictions,
        now=now,
        ahead=frozenset(ahead),
    )
    serving.log_of(name).append_lines(served.route.version, lines, len(asked))
    return orjson.dumps(
        {
            "model": name[1],
            "version": served.route.version,
            "release_seq": served.route.release_seq,
            "request_id": request_id,
            "predictions": predictions,
            "ahead_of_clock": ahead,
        }
    )


def _lines(
    served: Served,
    *,
    request_id: str,
    asked: Sequence[dict[str, Any]],
    keys: Sequence[Any],
    moments: Sequence[datetime],
    predictions: Sequence[dict[str, object]],
    now: datetime,
    ahead: frozenset[int],
) -> bytes:
    """The rows as the log keeps them."""
    lines: list[bytes] = []
    logged_at = now.isoformat()
    for index, (row, key, moment, prediction) in enumerate(zip(asked, keys, moments, predictions, strict=True)):
        stamp = logged_at if moment is now else moment.isoformat()
        line = {
            "request_id": request_id,
            "row": index,
            "key": key,
            "event_time": stamp,
            "logged_at": logged_at,
            "version": served.route.version,
            "features": served.meaning.features(row, stamp),
            "prediction": prediction,
        }
        if index in ahead:
            line["ahead_of_clock"] = True
        lines.append(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
    return b"".join(lines)
