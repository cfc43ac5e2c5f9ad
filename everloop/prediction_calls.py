"""What a client asks of a model's predictions once they are made: their log."""

from abc import ABC, abstractmethod
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from everloop.errors import Invalid

Json = dict[str, Any]
FORMS = ("parquet", "csv")


class PredictionCalls(ABC):
    """The part of `Client` that speaks of the prediction log."""

    @abstractmethod
    def _api(self, method: str, path: str, **request: Any) -> Any: ...  # noqa: ANN401

    @abstractmethod
    def _download(self, path: str, target: Path, params: Json) -> int: ...

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


def form_of(path: Path) -> str:
    """`parquet` or `csv`, as the file's name ends. Raises `Invalid`."""
    form = path.suffix.lower().removeprefix(".")
    if form not in FORMS:
        raise Invalid(f"{path.name} ends in neither .parquet nor .csv", field="output", hint="its name says the format")
    return form
