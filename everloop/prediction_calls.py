"""What a client asks of predictions that are many: a file that is scored, and the log of what was answered."""

import secrets
from abc import ABC, abstractmethod
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from everloop.errors import Invalid

Json = dict[str, Any]
FORMS = ("parquet", "csv")


class PredictionCalls(ABC):
    """The part of `Client` that speaks of scored files and of the prediction log."""

    @abstractmethod
    def _api(self, method: str, path: str, **request: Any) -> Any: ...  # noqa: ANN401

    @abstractmethod
    def _download(self, path: str, target: Path, params: Json) -> int: ...

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
