"""What the compute worker asks a supervisor for: an `Order`, one for each member of the lease."""

import hashlib
import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temporalio import activity

from activities.jobs import home, rows
from activities.jobs.gang import LOOPBACK
from activities.jobs.mark import MARK
from activities.jobs.order import Order
from activities.jobs.scratch import chain
from activities.jobs.slot import GRACE_SECONDS
from everloop import errors, names
from everloop.contracts import JobRequest
from everloop.records import Lease, Member
from everloop.settings import DEFAULT_SLOTS, Settings
from everloop.store import Store

WHOLE_GPU = 1000
NEW_LEASE = "the stage takes a new lease by itself"
SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Asked:
    """One attempt of a job."""

    function: str
    request: JobRequest
    job: str
    """`<run id>/<activity id>`."""
    attempt: int


class Orders:
    """Makes them, for one compute worker."""

    def __init__(self, settings: Settings, store: Store, root: str, topic: str) -> None:
        self._settings, self._store, self._root, self._topic = settings, store, root, topic

    def lease(self, request: JobRequest) -> Lease:
        """What the job may use: a slot alone says nothing of it, the settings do."""
        of_slot = Lease.model_validate(request.slot)
        if request.lease is not None:
            if _fence(request.lease) != _fence(of_slot):
                raise errors.LeaseLost("the lease is not the slot's", hint=NEW_LEASE)
            return request.lease
        if request.slot.members:
            return of_slot
        members = [member.model_copy(update={"cores": self._settings.slot_cores}) for member in of_slot.members]
        return of_slot.model_copy(update={"members": tuple(members)})

    def of(self, asked: Asked, hosts: Mapping[str, str], lent: str = "") -> list[Order]:
        """One for each member, rank 0 first. *hosts*: of all members' devices, as Dask sees them, where there are
        several. *lent*: see lent.py.
        """
        found = self._of(asked, hosts)
        if lent:
            for order in found:
                order["lent"] = lent
        return found

    def _of(self, asked: Asked, hosts: Mapping[str, str]) -> list[Order]:
        lease = self.lease(asked.request)
        members = sorted(lease.members, key=lambda member: member.rank)
        if len(members) == 1:
            return [self._order(asked, lease, members[0])]
        host = hosts[members[0].device] if len({hosts[member.device] for member in members}) > 1 else LOOPBACK
        where = {"size": len(members), "host": host, "folder": self._meeting_place(asked)}
        return [
            self._order(
                asked,
                lease,
                member.model_copy(update={"rank": rank}),
                {"rank": rank, "own": hosts[member.device], **where},
            )
            for rank, member in enumerate(members)
        ]

    def mark(self, device: str) -> str:
        """What the processes of a device of this deployment carry."""
        return f"{self._settings.scratch_dir}/{device}"

    def _meeting_place(self, asked: Asked) -> str:
        """New for every attempt: nobody of an attempt before is met there."""
        there = f"jobs/{asked.job}/gangs/{asked.attempt}-{uuid.uuid4().hex[:12]}"
        artifacts = self._settings.artifacts
        return f"{artifacts}/{there}" if self._settings.has_store else str(self._settings.scratch_dir / there)

    def _order(self, asked: Asked, lease: Lease, member: Member, gang: dict[str, Any] | None = None) -> Order:
        settings = self._settings
        body = asked.request.model_dump(mode="json")
        question = {name: value for name, value in body.items() if name not in ("slot", "lease")}
        rank = gang["rank"] if gang else 0  # a trial of a search has a member of its own, of any rank, and is no gang
        apart = f"/ranks/{rank}" if rank else ""
        order: Order = {
            "topic": self._topic,
            "function": asked.function,
            "root": self._root,
            "request": body,
            "digest": self._digest(asked.function, question),
            "token": asked.request.slot.token,
            "rank": member.rank,
            "device": part(member.device, "slot.device"),
            "live": rows.live(self._store, member.device),
            "whole": member.milli_gpu >= WHOLE_GPU,
            "folder": str(settings.scratch_dir / f"jobs/{asked.job}{apart}"),
            "log": names.job_log(asked.job, asked.attempt, rank),
            "logs_dir": str(settings.logs_dir),
            "slots_dir": str(settings.scratch_dir / "slots"),
            "environment": self._environment(member.device),
            "checkpoints": str(self._checkpoints(asked.function, question)),
            "checkpoint_seconds": settings.checkpoint_seconds,
            "lease": lease.model_dump(mode="json"),
            "artifacts": settings.artifacts,
            "predictions_dir": str(settings.predictions_dir),
            "grace_seconds": GRACE_SECONDS,
            "floor_bytes": settings.disk_floor_bytes,
            "memory_bytes": (member.memory_mib or settings.job_memory_mib) << 20,
            "slots": settings.slots or DEFAULT_SLOTS,
            "data_dir": str(settings.data_dir),
            "disk": home.disk(settings.data_dir),
        }
        if settings.has_store:
            below = Path(order["checkpoints"]).relative_to(settings.checkpoints_dir)
            order["depot"] = f"{settings.checkpoints_url}/{below}"
        if gang is not None:
            order["gang"] = gang
        return order

    def _digest(self, function: str, question: Any) -> str:  # noqa: ANN401
        canonical = json.dumps([self._root, function, question], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def _checkpoints(self, function: str, question: dict[str, Any]) -> Path:
        """Where the stage's checkpoints lie: the same for every attempt and token, and after a Reset."""
        folder = self._settings.checkpoints_dir / chain(activity.info().workflow_id or "")
        return folder / function / self._digest(function, _without_ran(question))[:16]

    def _environment(self, device: str) -> dict[str, str]:
        """What a job on *device* sees beside what its slot passes on. No credentials."""
        return {
            "EVERLOOP_DATA_DIR": str(self._settings.data_dir),
            "EVERLOOP_ARTIFACTS_URL": self._settings.artifacts,
            "EVERLOOP_SESSION": self._settings.session,  # a launcher knows its own processes by it
            MARK: self.mark(device),
        }


def part(name: str, what: str) -> str:
    """*name*, which becomes a folder's. Raises `Invalid`."""
    if not SAFE.fullmatch(name):
        raise errors.Invalid(
            f"{what} {name!r} cannot be a folder's name",
            field=what,
            hint="use letters, digits, dot, dash and underscore, at most 128",
        )
    return name


def _fence(lease: Lease) -> tuple[int, str, str]:
    return lease.token, lease.holder, lease.members[0].device


def _without_ran(value: Any) -> Any:  # noqa: ANN401
    """*value* without how the jobs before have run: after a Reset they may have run again, to the same end."""
    if isinstance(value, dict):
        return {name: _without_ran(each) for name, each in value.items() if name != "ran"}
    return [_without_ran(each) for each in value] if isinstance(value, list) else value
