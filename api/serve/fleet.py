"""The models that a process serves: it follows the route rows, and swaps a version for the next one whole."""

import logging
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pydantic import BaseModel
from sqlmodel import select

from activities.compute.inference import Model
from api.serve.proof import (
    Name,
    must_be_approved,
    must_be_of_the_model_shown,
    must_mean_what_was_shown,
    shown_before,
)
from api.serve.version import Served
from everloop import signing
from everloop.artifacts import Artifacts
from everloop.errors import EverloopError, IntegrityError, NotFound, Permanent, Unavailable
from everloop.predictions import PredictionLog
from everloop.predictions.refusals import Refusals
from everloop.records import Route, Signature, Version
from everloop.settings import Settings
from everloop.store import RouteRow, Store, VersionRow

log = logging.getLogger("everloop.serve")

POLL_SECONDS = 0.25
AGAIN_SECONDS = 5.0
"""A refused route is looked at again after this long: its bytes may have been on their way."""


class ServedView(BaseModel):
    """What answers for a model now, and what was refused."""

    project: str
    model: str
    version: int | None
    release_seq: int | None
    model_digest: str
    loaded_at: datetime | None
    error: str
    """Why the latest route is not served, or empty."""
    refused_seq: int
    """The release that was refused for good, or 0."""


class StatusView(BaseModel):
    models: list[ServedView]


@dataclass(frozen=True)
class Refused:
    """A release that is not served, and why."""

    release_seq: int
    why: str
    for_good: bool
    """It will not do by itself: false while only the disk or the store did not answer."""
    at: float
    """On the monotonic clock."""


@dataclass
class Fleet:
    """The models that this process serves. A swap replaces one entry: an answer is from one version whole."""

    settings: Settings
    store: Store
    artifacts: Artifacts
    served: dict[Name, Served] = field(default_factory=dict)
    refused: dict[Name, Refused] = field(default_factory=dict)
    _logs: dict[Name, PredictionLog] = field(default_factory=dict)
    _refusals: dict[Name, Refusals] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _closed: threading.Event = field(default_factory=threading.Event)
    _follower: threading.Thread | None = None

    def start(self) -> None:
        """Load what is routed now, then follow the routes."""
        self._look()
        self._follower = threading.Thread(target=self._follow, name="routes", daemon=True)
        self._follower.start()

    def close(self) -> None:
        self._closed.set()
        if self._follower is not None:
            self._follower.join(timeout=10)
        for opened in self._logs.values():
            opened.close()
        self._keep_refusals(now=True)

    def get(self, name: Name) -> Served:
        """What answers for *name*. Raises `NotFound`, or `Unavailable` when its first route was refused."""
        found = self.served.get(name)
        if found is not None:
            return found
        if name in self.refused:
            raise Unavailable(
                f"no version of {name[1]} can be served: {self.refused[name].why}", hint="GET /status follows it"
            )
        raise NotFound(
            f"nothing is released as {name[1][:63]} in project {name[0][:63]}",
            field="model",
            hint="`everloop approve` releases a version; it answers here a moment later",
        )

    def log_of(self, name: Name) -> PredictionLog:
        """Its prediction log, made at the first call."""
        found = self._logs.get(name)
        if found is not None:
            return found
        with self._lock:
            if name not in self._logs:
                self._logs[name] = PredictionLog(self.settings.predictions_dir / name[0] / name[1])
            return self._logs[name]

    def refusals_of(self, name: Name) -> Refusals:
        """What is refused of it, made at the first call."""
        with self._lock:
            if name not in self._refusals:
                self._refusals[name] = Refusals(self.settings.predictions_dir / name[0] / name[1])
            return self._refusals[name]

    def _keep_refusals(self, *, now: bool = False) -> None:
        for each in list(self._refusals.values()):
            try:
                each.flush(now=now)
            except OSError:
                log.exception("what was refused is not counted")

    def status(self) -> StatusView:
        every = sorted(self.served.keys() | self.refused.keys())
        return StatusView(models=[self._status(name) for name in every])

    def _status(self, name: Name) -> ServedView:
        found, refused = self.served.get(name), self.refused.get(name)
        return ServedView(
            project=name[0],
            model=name[1],
            version=found.route.version if found else None,
            release_seq=found.route.release_seq if found else None,
            model_digest=found.route.model_digest if found else "",
            loaded_at=found.loaded_at if found else None,
            error=refused.why if refused else "",
            refused_seq=refused.release_seq if refused and refused.for_good else 0,
        )

    def _follow(self) -> None:
        while not self._closed.wait(POLL_SECONDS):
            self._look()
            self._keep_refusals()

    def _look(self) -> None:
        try:
            with self.store.read() as session:
                routes = session.exec(select(RouteRow.project, RouteRow.model, RouteRow.release_seq)).all()
        except Exception:  # whatever the driver raises: what is loaded goes on answering
            log.exception("the routes could not be read")
            return
        self._forget({(project, model) for project, model, _ in routes})
        for project, model, release_seq in routes:
            if self._is_news((project, model), release_seq):
                self._take((project, model), release_seq)

    def _forget(self, routed: set[Name]) -> None:
        """Let go of models whose only release was rolled back."""
        for known in (self.served, self.refused):
            for name in known.keys() - routed:
                known.pop(name, None)

    def _is_news(self, name: Name, release_seq: int) -> bool:
        found, refused = self.served.get(name), self.refused.get(name)
        if refused is not None and refused.release_seq == release_seq:
            return time.monotonic() - refused.at > AGAIN_SECONDS
        return found is None or found.route.release_seq != release_seq

    def _take(self, name: Name, release_seq: int) -> None:
        try:
            loaded = self._load(name)
        except Exception as error:
            if not isinstance(error, EverloopError):  # no route may keep the others from being followed
                log.exception("release %d of %s/%s", release_seq, *name)
            why = f"release {release_seq} is refused: {error if isinstance(error, EverloopError) else 'unreadable'}"
            log.warning("%s/%s: %s", *name, why)
            self.refused[name] = Refused(release_seq, why, isinstance(error, Permanent), time.monotonic())
            return
        self.log_of(name).prepare(loaded.route.version)
        self.served[name] = loaded
        self.refused.pop(name, None)
        log.info("serving version %d of %s/%s (release %d)", loaded.route.version, *name, loaded.route.release_seq)

    def _load(self, name: Name) -> Served:
        """The routed version, proven: bytes by their digest, the digest by a signed decision."""
        with self.store.read() as session:
            row = session.get(RouteRow, name)
            version_row = session.get(VersionRow, (*name, row.version)) if row else None
        if row is None or version_row is None:
            raise IntegrityError("the route names a version that is not registered")
        route = Route.model_validate_json(row.record)
        version = Version.model_validate_json(version_row.record)
        if (row.version, row.release_seq, row.model_digest) != (route.version, route.release_seq, route.model_digest):
            raise IntegrityError("the route's columns are not what its record says")
        claim = must_be_approved(route, signing.trusted_keys(self.settings.keys_dir))
        data = self.artifacts.get(route.model_digest)
        signature = Signature.model_validate_json(self.artifacts.get(version.exported.signature))
        if claim.format > 1:
            must_mean_what_was_shown(name, route, claim, version, signature)
        else:
            must_be_of_the_model_shown(name, route, shown_before(self.store, claim))
        return Served(route, Model(data, signature), datetime.now(UTC))
