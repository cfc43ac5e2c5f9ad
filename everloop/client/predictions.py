"""What a client asks of predictions: answers to rows, a file that is scored, and the log of what was answered."""

import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from everloop.client.connection import Connection
from everloop.client.shapes import Json, given, one, part
from everloop.errors import Invalid

FORMS = ("parquet", "csv")


class PredictionCalls(Connection):
    """The part of `Client` that speaks of predictions, scored files and the prediction log."""

    def predict(
        self,
        model: str,
        rows: Sequence[Mapping[str, Any]] | Mapping[str, Any],
        *,
        event_time: str | datetime | None = None,
        request_id: str | None = None,
        project: str | None = None,
        **more: Any,  # noqa: ANN401
    ) -> Json:
        """Ask the released version about one row (a mapping) or many. *event_time* is when they happened.

        Further names (`key`, `keys`, `event_times`) go into the request as they are. Raises `InvalidPrediction`,
        which names the field, and `NotFound` when nothing is released under that name.
        """
        when = event_time.isoformat() if isinstance(event_time, datetime) else event_time
        body: Json = {"row": rows} if isinstance(rows, Mapping) else {"rows": list(rows)}
        body |= given(event_time=when, request_id=request_id or secrets.token_hex(8), **more)
        place = f"models/{part(model)}" if project is None else f"projects/{part(project)}/models/{part(model)}"
        return one(self._call("POST", f"{self.serve_url}/{place}/predict", json=body))

    def schema(self, model: str, project: str = "default") -> Json:
        """The columns that the released version of a model takes, and what it answers."""
        return one(self._call("GET", f"{self.serve_url}/models/{part(model)}/schema", params={"project": project}))

    def serving(self) -> Any:  # noqa: ANN401
        """What the prediction server has loaded."""
        return self._call("GET", f"{self.serve_url}/status")

    def score(
        self, model: str, path: str | Path, form: str = "parquet", key: str | None = None, project: str = "default"
    ) -> Json:
        """Have every row of a CSV, TSV or Parquet file answered by the released version; answers at once.

        *path* is read where the compute worker runs. *key* names the score: the same key again goes on with it. See
        `score_status` and `score_file`; it goes on whatever is killed.
        """
        made = key or f"score-{secrets.token_hex(6)}"
        body = {"path": str(Path(path).absolute()), "format": form}
        where = f"/models/{quote(model, safe='')}/score"
        return dict(self._api("POST", where, json=body, params={"project": project}, headers={"Idempotency-Key": made}))

    def score_status(self, model: str, key: str, project: str = "default") -> Json:
        """How far a score is: status (running, done, failed, cancelled), a sentence, rows answered and rejected."""
        return dict(self._api("GET", _score(model, key), params={"project": project}))

    def score_file(
        self, model: str, key: str, path: str | Path, project: str = "default", *, rejects: bool = False
    ) -> int:
        """Write what came out into *path*, or the rejected rows with their reasons; answers how many rows."""
        what = "rejects" if rejects else "out"
        return self._download(f"{_score(model, key)}/{what}", Path(path), {"project": project})

    def log(self, model: str, project: str = "default") -> Json:
        """What the model's prediction log holds: rows by day of event time, bytes, torn lines, how long rows stay."""
        return dict(self._api("GET", f"/models/{quote(model, safe='')}/log", params={"project": project}))

    def log_rows(
        self,
        model: str,
        path: str | Path,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        project: str = "default",
    ) -> int:
        """Write the logged rows with since <= event time < until into *path* (.parquet or .csv); answers how many.

        Features by name and type, united over versions; beside them request id, key, times, version and prediction.
        """
        target = Path(path)
        params = {"project": project, "format": form_of(target)}
        params |= {name: str(value) for name, value in (("since", since), ("until", until)) if value is not None}
        return self._download(f"/models/{quote(model, safe='')}/log/rows", target, params)


def _score(model: str, key: str) -> str:
    return f"/models/{quote(model, safe='')}/scores/{quote(key, safe='')}"


def form_of(path: Path) -> str:
    """`parquet` or `csv`, as the file's name ends. Raises `Invalid`."""
    form = path.suffix.lower().removeprefix(".")
    if form not in FORMS:
        raise Invalid(f"{path.name} ends in neither .parquet nor .csv", field="output", hint="its name says the format")
    return form
