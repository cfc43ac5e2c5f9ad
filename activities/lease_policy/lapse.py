"""What time alone brings: notices whose deadline has passed become kills, and drained devices are left in time.

A lease that was told to let go and does not is fenced and killed. Of a device that is drained, each lease gets its
notice one grace before the end; what is left on it at the end is killed.
"""

from activities.lease_policy.pool import LIVE, Pool
from activities.lease_policy.state import Held, Kill, Notice


def kill_the_overdue(pool: Pool) -> None:
    """After `keep`: a notice that nobody needs any more is withdrawn and not carried out."""
    spared = {one.token for one in pool.withdrawn}
    until = pool.now_ms + 2 * pool.policy.grace_s * 1000
    for held in sorted(pool.held, key=lambda held: (held.deadline_ms, held.token)):
        overdue = held.state == "noticed" and held.deadline_ms <= pool.now_ms and held.token not in spared
        if overdue or (held.state in LIVE and 0 < _drain_by(pool, held) <= pool.now_ms):
            pool.killed.append(Kill(held.token, until + len(pool.killed)))  # in the order of their notices


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
