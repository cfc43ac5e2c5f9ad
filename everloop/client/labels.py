"""What a client says of labels, and of data that broke."""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from everloop.client.connection import Connection
from everloop.client.shapes import Json
from everloop.errors import EverloopError


class LabelCalls(Connection):
    """The part of a `Client` that is about what became of predictions."""

    def label(
        self, model: str, labels: Sequence[Mapping[str, Any]], *, project: str = "default", first: int = 0
    ) -> Json:
        """Say what became of predictions: `client.label("churn", [{"key": "A-17", "label": 1}])`.

        A row is named by `request_id` (with `row`), else by `key` or the key column's own name, else by columns of the
        model; names are compared as texts. All are kept or none, the last label of a row counts, and a label may come
        before its prediction. *first*: the number of the first row, for messages.
        Raises `Invalid` that names the row and the column.
        """
        try:
            answer: Json = self._api("POST", self._of(model, "labels", project), json={"labels": list(labels)})
        except EverloopError as error:
            if not first:
                raise
            raise type(error)(_moved(str(error), first), field=_moved(error.field, first), hint=error.hint) from None
        return answer

    def labels(self, model: str, *, project: str = "default") -> Json:
        """How many labels there are, how many wait for their prediction, and the performance of each window."""
        answer: Json = self._api("GET", self._of(model, "labels", project))
        return answer

    def lift_quarantine(self, model: str, *, accept: bool = False, project: str = "default") -> Json:
        """Say that broken data is mended, or with *accept* that it is meant to be as it is. Safe to repeat."""
        path = self._of(model, "quarantine/lift", project)
        answer: Json = self._api("POST", path, json={"accept": accept})
        return answer

    @staticmethod
    def _of(model: str, what: str, project: str) -> str:
        return f"/models/{quote(model, safe='')}/{what}?project={quote(project, safe='')}"


def _moved(text: str, by: int) -> str:
    """*text* with the numbers of its rows counted from the first one that was sent."""
    text = re.sub(r"\brow (\d+)", lambda found: f"row {int(found[1]) + by:,}", text)
    return re.sub(r"\blabels\[(\d+)\]", lambda found: f"labels[{int(found[1]) + by}]", text)
