"""What a client asks of models: which there are, what answers, back to the version before, and the watch."""

from everloop.client.connection import Connection
from everloop.client.shapes import Json, Rows, items, one, part


class ModelCalls(Connection):
    """The part of `Client` that speaks of models."""

    def models(self) -> Rows:
        """The models that there are, with the version that answers now."""
        return items(self._api("GET", "/models"))

    def model(self, model: str, project: str = "default") -> Json:
        """A model: its route, versions, monitor and drift checks."""
        return one(self._api("GET", f"/models/{part(model)}", params={"project": project}))

    def roll_back(self, model: str, reason: str, release_seq: int | None = None, project: str = "default") -> Json:
        """Send a model's traffic back to the version before its latest release; answers what answers now.

        *release_seq*: the release to undo, as `model` shows it. Raises `Conflict` when that is not the latest one,
        or when there is no version before it. Sent again after an answer was lost, it undoes nothing more.
        """
        seen = release_seq if release_seq is not None else self.model(model, project)["route"]["release_seq"]
        body = {"release_seq": seen, "reason": reason}
        return one(self._api("POST", f"/models/{part(model)}/roll-back", params={"project": project}, json=body))

    def check(self, model: str, project: str = "default") -> Json:
        """Let the model's monitor look now, not only when it is due."""
        return one(self._api("POST", f"/models/{part(model)}/check", params={"project": project}))

    def checks(self, model: str, project: str = "default", *, before: int | None = None, limit: int = 200) -> Rows:
        """The last windows that the monitor looked at, oldest first; *before*: those ahead of that number."""
        asked = {"project": project, "limit": limit} | ({} if before is None else {"before": before})
        return items(self._api("GET", f"/models/{part(model)}/checks", params=asked))

    def rearm(self, model: str, project: str = "default") -> Json:
        """Let the model's monitor cause retrainings again, whatever came of those before. Safe to repeat."""
        return one(self._api("POST", f"/models/{part(model)}/rearm", params={"project": project}))
