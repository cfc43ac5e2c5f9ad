"""What a client asks of gates: which are open, what is shown there, and a signed yes or no."""

from everloop.client.connection import Connection
from everloop.client.shapes import Json, Rows, items, one, part


class ApprovalCalls(Connection):
    """The part of `Client` that speaks of gates."""

    def approvals(self, status: str = "open") -> Rows:
        """The gates where a person is asked."""
        return items(self._api("GET", "/approvals", params={"status": status}))

    def approval(self, lifecycle: str) -> Json:
        """The gate of a lifecycle with its evidence and the digest that a decision names."""
        return one(self._api("GET", f"/approvals/{part(lifecycle)}"))

    def approve(self, lifecycle: str, comment: str = "", evidence_digest: str | None = None) -> Json:
        """Sign a yes to the evidence with *evidence_digest* (the gate's present one when left out).

        Raises `EvidenceChanged` when the gate has other evidence by now, `GateClosed` when it was decided.
        """
        return self._decide(lifecycle, "approve", comment, evidence_digest)

    def reject(self, lifecycle: str, comment: str, evidence_digest: str | None = None) -> Json:
        """Sign a no. A comment is required: it is the reason that everybody reads."""
        return self._decide(lifecycle, "reject", comment, evidence_digest)

    def _decide(self, lifecycle: str, verdict: str, comment: str, digest: str | None) -> Json:
        digest = digest or self.approval(lifecycle)["evidence_digest"]
        body = {"verdict": verdict, "comment": comment, "evidence_digest": digest}
        return one(self._api("POST", f"/approvals/{part(lifecycle)}/decision", json=body))
