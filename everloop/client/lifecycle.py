"""What a client asks of lifecycles: start one, look at it, wait for it, tell it what to do."""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, overload
from urllib.parse import quote, urljoin

from everloop.client.connection import Connection
from everloop.client.shapes import Json, Rows, given, items, one, part
from everloop.client.spec import Spec, load_spec
from everloop.errors import Invalid, Unavailable

RUNNING = frozenset({"running", "waiting_approval", "needs_attention"})
"""Statuses of a lifecycle that has not ended."""
FAR_SECONDS = 10 * 365 * 86400.0


class LifecycleCalls(Connection):
    """The part of `Client` that speaks of lifecycles."""

    def submit(self, spec: Spec, key: str | None = None, changes: Mapping[str, Any] | None = None) -> Json:
        """Start a lifecycle; answers it. *key* is its id: the same key again answers the same lifecycle.

        Without *key* each call starts a new one, under a key that this call's own retries reuse. *changes* stand over
        what the spec says: `{"target_missing": "drop", "training.rounds": 50}`.
        """
        body = load_spec(spec, changes)
        key = key or f"{body.get('model', 'model')}-{secrets.token_hex(4)}"
        return one(self._api("POST", "/lifecycles", json=body, headers={"Idempotency-Key": key}))

    def list(self, limit: int = 50, status: str | None = None, model: str | None = None) -> Rows:
        """The latest lifecycles, newest first."""
        return items(self._api("GET", "/lifecycles", params=given(limit=limit, status=status, model=model)))

    def show(self, lifecycle: str) -> Json:
        """A lifecycle as it is now: status, stages, wait, metrics, failure; its `links` are whole URLs."""
        found = one(self._api("GET", f"/lifecycles/{part(lifecycle)}"))
        links = {name: urljoin(self.url, link) for name, link in found.get("links", {}).items()}
        return found | {"links": links}

    def events(self, lifecycle: str) -> Rows:
        """What happened to it, oldest first."""
        return items(self._api("GET", f"/lifecycles/{part(lifecycle)}/events"))

    @overload
    def logs(
        self,
        lifecycle: str,
        stage: str | None = None,
        tail: int | None = None,
        *,
        follow: Literal[False] = False,
        rank: int = 0,
    ) -> str: ...

    @overload
    def logs(
        self, lifecycle: str, stage: str | None = None, tail: int | None = None, *, follow: Literal[True]
    ) -> Iterator[Json]: ...

    def logs(
        self, lifecycle: str, stage: str | None = None, tail: int | None = None, *, follow: bool = False, rank: int = 0
    ) -> str | Iterator[Json]:
        """The last *tail* lines of a stage's log (of the stage that runs or ran last, when none is named).

        *rank*: of a stage that several processes run together; what is followed is rank 0's.

        With *follow*: an iterator over all that its jobs write, stage after stage, until the lifecycle waits for a
        person or has ended. Each item is `{"stage", "attempt", "text"}`, the last one `{"status", "wait"}`. It
        begins with the first log, or with the last *tail* lines of the newest. A stack that comes back within
        `PATIENCE_SECONDS` is waited for, and no line is lost or told twice.
        """
        if follow:
            return self._follow(lifecycle, stage, tail)
        path = f"/lifecycles/{part(lifecycle)}/logs"
        return str(self._api("GET", path, params=given(stage=stage, tail=tail, rank=rank or None)))

    def data(self, lifecycle: str) -> Json:
        """What its latest snapshot has read: per column its kind, how it was read, missing values, bars of a histogram
        and what the rules changed; how many rows have no target. Raises `NotFound` before the snapshot stage has ended.
        """
        return one(self._api("GET", f"/lifecycles/{part(lifecycle)}/data"))

    def rejected(self, lifecycle: str) -> str:
        """The values that are not as its spec declares, as CSV: file, row, column, value. Up to 10,000 of them.

        Raises `NotFound` where there is none.
        """
        return str(self._api("GET", f"/lifecycles/{part(lifecycle)}/rejected"))

    def kept(self, lifecycle: str) -> Rows:
        """The files that its jobs kept for people (`log_artifact`), each with stage, start of the stage and size."""
        return items(self._api("GET", f"/lifecycles/{part(lifecycle)}/kept"))

    def artifact(self, lifecycle: str, stage: str, name: str, start: int | None = None) -> bytes:
        """A file that a stage kept: what its trainer gave to `log_artifact`, or `environment.json`.

        Of its latest start that kept one of this name, or of the one with the number *start*; `kept` lists them all.
        Raises `NotFound`.
        """
        path = f"/lifecycles/{part(lifecycle)}/artifacts/{quote(stage, safe='')}/{quote(name, safe='')}"
        content: bytes = self._api("GET", path, params=given(start=start))
        return content

    def _follow(self, lifecycle: str, stage: str | None, tail: int | None) -> Iterator[Json]:
        path, cursor = f"/lifecycles/{part(lifecycle)}/logs/follow", ""
        while True:
            asked = given(stage=stage, cursor=cursor or None, tail=tail)
            found = one(self._api("GET", path, params=asked))
            yield from found["items"]
            cursor = found["cursor"]
            if found["over"]:
                yield {"status": found["status"], "wait": found["wait"]}
                return

    def curves(self, lifecycle: str, rank: int = 0) -> Rows:
        """The learning curves of its last training: per metric the steps, what they are called (`unit`), the values on
        train and validation rows, and the best step. Each has 200 steps at most. *rank*: of several that have learned
        together.
        """
        return items(self._api("GET", f"/lifecycles/{part(lifecycle)}/curves", params=given(rank=rank or None)))

    def metrics(self, lifecycle: str) -> Any:  # noqa: ANN401
        """Progress of its jobs: values by step."""
        return self._api("GET", f"/lifecycles/{part(lifecycle)}/metrics")

    def wait(
        self,
        lifecycle: str,
        until: Literal["end", "gate"] | Callable[[Json], bool] = "end",
        timeout: float | None = None,
        every: float = 0.5,
    ) -> Json:
        """Wait until the lifecycle has ended, or (`until="gate"`) until it needs a person; answers it.

        `needs_attention` always ends the wait: only a person can go on from there. *timeout* and *every* are
        seconds. Raises `Unavailable` when *timeout* has passed.
        """
        done = until if callable(until) else _until(until)
        deadline = time.monotonic() + (FAR_SECONDS if timeout is None else timeout)
        while True:
            found = self.show(lifecycle)
            if done(found) or found["status"] == "needs_attention" or found["status"] not in RUNNING:
                return found
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"{lifecycle} is still {found['status']} at stage {found.get('stage') or '-'}",
                    hint=f"`everloop show {lifecycle}` says what it waits for",
                )
            time.sleep(every)

    def retry(self, lifecycle: str) -> Json:
        """Try the failed stage of a parked lifecycle again."""
        return self._attend(lifecycle, "retry", {})

    def skip(self, lifecycle: str, reason: str = "") -> Json:
        """Go on without the failed stage of a parked lifecycle, where it can be done without."""
        return self._attend(lifecycle, "skip", {"reason": reason})

    def abort(self, lifecycle: str, reason: str = "") -> Json:
        """End a parked lifecycle."""
        return self._attend(lifecycle, "abort", {"reason": reason})

    def cancel(self, lifecycle: str, reason: str = "") -> Json:
        """Ask a running lifecycle to end; its jobs are stopped."""
        return self._attend(lifecycle, "cancel", {"reason": reason})

    def fork(self, lifecycle: str, stage: str, changes: Json | None = None, key: str | None = None) -> Json:
        """Start a lifecycle that keeps what *lifecycle* found before *stage*; answers it.

        *changes*: fields of the spec by dotted names, `{"training.rounds": 800}`. Raises `Invalid` when an earlier
        stage reads one of them, `Conflict` when what is before *stage* is not done.
        """
        key = key or f"{lifecycle.rpartition('/')[2][:100]}-fork-{secrets.token_hex(4)}"
        path = f"/lifecycles/{part(lifecycle)}/fork"
        body = {"stage": stage, "changes": changes or {}}
        return one(self._api("POST", path, json=body, headers={"Idempotency-Key": key}))

    def pause(self, lifecycle: str, reason: str = "") -> Json:
        """End its running job at a checkpoint, give its slot to others, and begin nothing until `resume`.

        Raises `NotWaiting` at the gate and after it, where it runs no job.
        """
        return self._attend(lifecycle, "pause", {"reason": reason})

    def resume(self, lifecycle: str) -> Json:
        """Let a paused lifecycle go on with the stage that it was at. Raises `NotWaiting` when it is not paused."""
        return self._attend(lifecycle, "resume", {})

    def _attend(self, lifecycle: str, action: str, body: Json) -> Json:
        return one(self._api("POST", f"/lifecycles/{part(lifecycle)}/{action}", json=body))


def _until(until: str) -> Callable[[Json], bool]:
    if until == "gate":
        return lambda found: found["status"] == "waiting_approval"
    if until == "end":
        return lambda _: False  # `wait` itself sees the end
    raise Invalid(f"until must be 'end', 'gate' or a function, not {until!r}", field="until")
