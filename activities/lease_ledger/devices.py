"""What there is to lease, and what operators say about it."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlmodel import Session, col, select

from activities import lease_time
from activities.lease_ledger import rows
from everloop import names
from everloop.amounts import AMOUNTS
from everloop.errors import Conflict, NotFound
from everloop.settings import AWAY_SECONDS
from everloop.store import DeviceRow, LeaseMemberRow, LeaseRow, Store


class Reported(NamedTuple):
    """A device as its Dask worker reports it."""

    name: str
    light: bool
    node: str
    whole: Mapping[str, int]
    job_cores: int


def parsed(said: str) -> Reported:
    """`cpu0`, `cpu1:light`, `gpu-1a:node=host:cores=8:memory_mib=32000:milli_gpu=1000:gpu_mib=80000`.

    What is not said is one core and nothing else; what is not understood is left out.
    """
    name, *facts = said.split(":")
    whole, node = dict.fromkeys(AMOUNTS, 0) | {"cores": 1, "job_cores": 1}, ""
    for fact in facts:
        what, _, value = fact.partition("=")
        if what == "node":
            node = value
        elif what in whole and value.isascii() and value.isdigit():
            whole[what] = min(int(value[:12]), rows.LARGEST >> 32)
    job_cores = whole.pop("job_cores")
    return Reported(name, names.LIGHT_SUFFIX.removeprefix(":") in facts, node, whole, max(1, job_cores))


def note_inventory(
    store: Store, pool: str, inventory: Iterable[str], away: timedelta = timedelta(seconds=AWAY_SECONDS)
) -> None:
    """Present are exactly the devices of *inventory*; others stay known, but get no new lease.

    A lease on a device that has just gone comes to its time after *away*: its holder then takes another one.
    """
    found = {device.name: device for device in map(parsed, inventory)}
    at = rows.now()
    with store.write() as session:
        rows.alone(session, pool)
        known = session.exec(select(DeviceRow).where(DeviceRow.pool == pool).order_by(DeviceRow.name)).all()
        gone = [row.name for row in known if row.present and row.name not in found]
        changes = [_noted(session, row, found.pop(row.name, None)) for row in known]
        for device in found.values():
            session.add(_new(pool, device, rows.ms(at)))
        of_gone = select(LeaseMemberRow.token).where(
            LeaseMemberRow.pool == pool, col(LeaseMemberRow.live), col(LeaseMemberRow.device).in_(gone)
        )
        for lease in session.exec(rows.working(pool).where(col(LeaseRow.token).in_(of_gone))).all():
            lease.expires_at = min(lease.expires_at or at, at + away)
            session.add(lease)
        if found or any(changes):
            lease_time.devices_noted(session, pool, at)
            rows.changed(session, pool)


def _noted(session: Session, row: DeviceRow, device: Reported | None) -> bool:
    """Is anything of *row* not as it was? What leases use of a device that has become smaller is still there."""
    facts: dict[str, object] = {"present": device is not None}
    if device is not None:
        facts |= {"light": device.light, "node": device.node or row.node, "job_cores": device.job_cores}
        facts |= {what: max(device.whole[what], getattr(row, f"used_{what}")) for what in AMOUNTS}
    if all(getattr(row, name) == value for name, value in facts.items()):
        return False
    row.sqlmodel_update(facts)
    session.add(row)
    return True


def _new(pool: str, device: Reported, at_ms: int) -> DeviceRow:
    row = DeviceRow(pool=pool, name=device.name, light=device.light, node=device.node, since_ms=at_ms)
    return row.sqlmodel_update({**device.whole, "job_cores": device.job_cores})


def absent(store: Store, pool: str) -> dict[int, str]:
    """Tokens of leases with a member on a device whose Dask worker is not there, and that device: of a gang one is
    enough.
    """
    lost = (
        select(LeaseMemberRow.token, LeaseMemberRow.device)
        .join(DeviceRow, (col(DeviceRow.pool) == LeaseMemberRow.pool) & (col(DeviceRow.name) == LeaseMemberRow.device))
        .where(LeaseMemberRow.pool == pool, col(LeaseMemberRow.live), col(DeviceRow.present).is_(False))
        .order_by(col(LeaseMemberRow.rank).desc())
    )
    with store.read() as session:
        return dict(session.exec(lost).all())


def drain(store: Store, pool: str, target: str, deadline: datetime, *, by: str = "", reason: str = "") -> list[str]:
    """No new lease on the device, or the node, *target*; those on it are told to end by *deadline*.

    Returns the devices. The pool has to be woken after it. Raises `NotFound`.
    """
    why = f"drained by {by}" + (f": {reason}" if reason else "") if by else reason
    return _set(store, pool, target, {"state": "draining", "drain_by": deadline, "why": why})


def cordon(store: Store, pool: str, target: str, *, by: str = "", reason: str = "") -> list[str]:
    """No new lease on the device, or the node, *target*; those on it go on. Raises `NotFound`."""
    why = f"closed by {by}" + (f": {reason}" if reason else "") if by else reason
    return _set(store, pool, target, {"state": "cordoned", "drain_by": None, "why": why})


def undrain(store: Store, pool: str, target: str) -> list[str]:
    """The device, or node, *target* takes leases again; who was told to leave it may stay. Raises `NotFound`."""
    return _set(store, pool, target, {"state": "ready", "drain_by": None, "why": ""})


def _withdraw_needless_drains(session: Session, pool: str) -> None:
    """Notices to leases that are on no device that is drained any more."""
    told = select(LeaseRow).where(LeaseRow.pool == pool, LeaseRow.state == "noticed", LeaseRow.notice == "drain")
    drained = select(DeviceRow.name).where(DeviceRow.pool == pool, DeviceRow.state == "draining")
    still = set(session.exec(drained).all())
    for row in session.exec(told).all():
        if not any(member.device in still for member in rows.members(session, row, live=True)):
            rows.stays(row)
            session.add(row)


def _told_anew(session: Session, pool: str) -> None:
    """Who was told to leave a drained device has until the drain that counts now; the pool tells it."""
    by = {row.name: row.drain_by for row in session.exec(select(DeviceRow).where(DeviceRow.pool == pool)).all()}
    told = select(LeaseRow).where(LeaseRow.pool == pool, LeaseRow.state == "noticed", LeaseRow.notice == "drain")
    for row in session.exec(told).all():
        ends = [end for member in rows.members(session, row, live=True) if (end := by.get(member.device))]
        if ends:
            row.deadline_at = min(ends)
            session.add(row)


def _set(store: Store, pool: str, target: str, facts: Mapping[str, object]) -> list[str]:
    with store.write() as session:
        rows.alone(session, pool)
        of_target = (col(DeviceRow.name) == target) | (col(DeviceRow.node) == target)
        found = session.exec(select(DeviceRow).where(DeviceRow.pool == pool, of_target).order_by(DeviceRow.name)).all()
        if not found:
            raise NotFound(f"pool {pool} has no device and no node {target!r}", hint="`everloop node list` shows them")
        for row in found:
            session.add(row.sqlmodel_update(dict(facts)))
        session.flush()
        _withdraw_needless_drains(session, pool)
        _told_anew(session, pool)
        rows.changed(session, pool)
        return [row.name for row in found]


def revoke(store: Store, token: int, *, by: str, reason: str, grace: timedelta) -> str:
    """A person takes a lease away: its holder is told to write a checkpoint and let go within *grace*.

    Returns its pool, which has to be woken. Raises `NotFound`, and `Conflict` when it ends already.
    """
    with store.write() as session:
        row = rows.alone_with(session, rows.lease(session, token))
        if row is None:
            raise NotFound(f"there is no lease with token {token}", hint="`everloop lease list` shows them")
        if row.state not in ("offered", "active"):
            raise Conflict(f"the lease with token {token} is {row.state}")
        at = rows.now()
        row.state, row.notice, row.noticed_at, row.deadline_at = "noticed", "revoke", at, at + grace
        row.why, row.beneficiary = f"{by} took it away" + (f": {reason}" if reason else ""), ""
        session.add(row)
        rows.changed(session, row.pool)
        return row.pool


def others_on(store: Store, pool: str, device: str) -> tuple[int, ...]:
    """Tokens whose members are live on the device: what else runs there is an orphan."""
    query = select(LeaseMemberRow.token).where(
        LeaseMemberRow.pool == pool, LeaseMemberRow.device == device, col(LeaseMemberRow.live)
    )
    with store.read() as session:
        return tuple(sorted(session.exec(query).all()))
