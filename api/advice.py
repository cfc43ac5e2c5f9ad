"""Advice from measured use: which stages lease more, or less, than their jobs use, and what to write into the spec."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime

from fastapi import APIRouter
from pydantic import BaseModel
from sqlmodel import Session, col, select

from activities import lease_time
from api.cost import Pool, Since, moment
from api.dependencies import Here
from everloop import names
from everloop.store import JobTimeRow, LeaseMemberRow, LeaseRow, LifecycleRow

router = APIRouter(tags=["cost"])

LEAST_MS = 5_000
"""A shorter job says nothing about what it needs."""
BUSY, IDLE = 0.9, 0.5
"""Part of the leased core time above which more cores may help, below which fewer would do."""
TIGHT, ROOMY = 0.9, 0.4
"""The same of memory."""
SPARE = 1.25
"""Of what is recommended, over what was seen."""
STEP_MIB = 256
LIGHTEST_MIB = 512


class Advice(BaseModel):
    """What the jobs of a stage of a model used of what they leased."""

    model: str
    stage: str
    jobs: int
    """Longer than 5 s, and measured."""
    cores: int
    cores_used: float
    """On average, of the busiest job."""
    memory_mib: int
    """0: its cores' part of the device, whatever that was."""
    peak_mib: int
    kind: str
    """`fits`, `over` (it leases more than it uses), `under` (it may be faster, or die, for want of more)."""
    sentence: str


class AdviceList(BaseModel):
    """By model and stage; what to change first."""

    items: list[Advice]


@router.get("/advice")
def advice(here: Here, since: Since = "30d", pool: Pool = names.DEFAULT_POOL) -> AdviceList:
    """What stages use of what they lease, since then."""
    with here.store.read() as session:
        return AdviceList(items=found(session, pool, moment(since, datetime.now(UTC))))


def found(session: Session, pool: str, since: datetime) -> list[Advice]:
    query = (
        select(JobTimeRow, LeaseMemberRow, LeaseRow.workflow_id)
        .join(LeaseRow, col(LeaseRow.token) == col(JobTimeRow.token))
        .join(
            LeaseMemberRow,
            (col(LeaseMemberRow.token) == col(LeaseRow.token)) & (col(LeaseMemberRow.pool) == col(LeaseRow.pool)),
        )
        .where(
            LeaseRow.pool == pool, JobTimeRow.to_ms > lease_time.in_ms(since), JobTimeRow.done, LeaseMemberRow.rank == 0
        )
    )
    by_stage: dict[tuple[str, str], list[tuple[JobTimeRow, LeaseMemberRow]]] = defaultdict(list)
    for job, member, holder in session.exec(query).all():
        lifecycle = session.get(LifecycleRow, names.lifecycle_of(holder))
        model = lifecycle.model if lifecycle else ""
        if model and job.cpu_ms and job.to_ms - job.from_ms >= LEAST_MS:
            by_stage[model, job.stage].append((job, member))
    told = [_of(model, stage, jobs) for (model, stage), jobs in sorted(by_stage.items())]
    return sorted(told, key=lambda one: (("under", "over", "fits").index(one.kind), one.model, one.stage))


def _of(model: str, stage: str, jobs: Sequence[tuple[JobTimeRow, LeaseMemberRow]]) -> Advice:
    newest = max(jobs, key=lambda one: one[0].to_ms)[1]
    alike = [job for job, member in jobs if (member.cores, member.memory_mib) == (newest.cores, newest.memory_mib)]
    used = max(job.cpu_ms / (job.to_ms - job.from_ms) for job in alike)
    peak = max(job.peak_mib for job in alike)
    kind, words = judged(newest.cores, used, newest.memory_mib, peak)
    return Advice(
        model=model,
        stage=stage,
        jobs=len(alike),
        cores=newest.cores,
        cores_used=round(used, 2),
        memory_mib=newest.memory_mib,
        peak_mib=peak,
        kind=kind,
        sentence=f"{stage} of {model} {words}",
    )


def judged(cores: int, used: float, memory_mib: int, peak_mib: int) -> tuple[str, str]:
    """What the figures say, and what to do about it."""
    said = f"used {used:.1f} of {cores} core{'s' * (cores != 1)}"
    said += f" and {peak_mib:,} of {memory_mib:,} MiB" if memory_mib else f" and {peak_mib:,} MiB"
    if memory_mib and peak_mib >= TIGHT * memory_mib:
        return "under", f"{said}: it is close to being ended for its memory; `memory: {_mib(peak_mib * 1.5)}MiB`"
    if used >= BUSY * cores:
        more = (
            f"`cpus: {cores * 2}` may make it faster" if cores > 1 else "a second core (`cpus: 2`) may make it faster"
        )
        return "under", f"{said}: it keeps all of them busy; {more}"
    less = []
    if cores > 1 and used < IDLE * cores:
        less.append(f"`cpus: {max(1, min(cores - 1, int(used * SPARE) + 1))}`")
    if memory_mib > LIGHTEST_MIB and peak_mib < ROOMY * memory_mib:
        less.append(f"`memory: {_mib(peak_mib * SPARE)}MiB`")
    if less:
        return "over", f"{said}: {' and '.join(less)} would do, and others could run beside it"
    return "fits", f"{said}: that fits"


def _mib(needed: float) -> int:
    return max(LIGHTEST_MIB, -(-int(needed) // STEP_MIB) * STEP_MIB)
