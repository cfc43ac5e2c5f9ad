"""What time alone brings: notices whose deadline has passed become kills, and drained devices are left in time.

A lease that was told to let go and does not is fenced and killed. Of a device that is drained, each lease gets its
notice one grace before the end; what is left on it at the end is killed.
"""

from activities.lease_policy.pool import LIVE, Pool
from activities.lease_policy.state import Held, Kill, Notice


def find_the_overdue(pool: Pool) -> None:
    """Before `keep`, to which they are as good as killed. Deadlines of kills are in the order of their notices."""
    until = pool.now_ms + 2 * pool.policy.grace_s * 1000
    earlier = [held.deadline_ms for held in pool.held if held.state == "killing"]
    until = max([until, *(each + 1 for each in earlier if each < until + 1000)])
    for held in sorted(pool.held, key=lambda held: (held.deadline_ms, held.token)):
        overdue = held.state == "noticed" and held.deadline_ms <= pool.now_ms
        if overdue or _is_drained(pool, held):
            pool.overdue[held.token] = Kill(held.token, until + len(pool.overdue))


def kill_the_overdue(pool: Pool) -> None:
    """After `keep`: a notice that nobody needs any more is withdrawn and not carried out."""
    spared = {one.token for one in pool.withdrawn}
    for held in pool.held:
        if held.token in pool.overdue and (held.token not in spared or _is_drained(pool, held)):
            pool.killed.append(pool.overdue[held.token])
    pool.killed.sort(key=lambda one: one.deadline_ms)


def _is_drained(pool: Pool, held: Held) -> bool:
    return held.state in LIVE and 0 < _drain_by(pool, held) <= pool.now_ms


def empty_the_drained(pool: Pool) -> None:
    """Notices to the leases on devices that are drained, in time for their grace, or with what is left of it."""
    grace = pool.policy.grace_s * 1000
    for held in pool.held:
        by = _drain_by(pool, held)
        if held.state == "active" and pool.now_ms < by <= pool.now_ms + grace:
            pool.notices.append(Notice(held.token, "", "drain", by))


def _drain_by(pool: Pool, held: Held) -> int:
    """The earliest end of a device that it is on; 0: nobody drains one."""
    times = [pool.devices[part.device].drain_by_ms for part in held.members if part.device in pool.devices]
    return min((time for time in times if time > 0), default=0)
