"""The simulator's own rules: nothing is used twice, all work is done, the same seed gives the same table."""

import pytest

from bench.pool_simulation import workloads
from bench.pool_simulation.deciders import ALL
from bench.pool_simulation.workloads import WHOLE, Job
from bench.pool_simulation.world import RESTART_MS, SAVE_MS, World

QUOTAS = {"t00": 8, "t01": 4, "t02": 4}


def jobs(seed: int) -> list[Job]:
    return workloads.philly(seed, 60, 1.5, QUOTAS)


@pytest.mark.parametrize("name", sorted(ALL))
def test_whoever_decides_all_work_is_done_and_no_gpu_is_used_twice(name: str) -> None:
    asked = jobs(3)

    world = World(asked, QUOTAS, ALL[name]()).run()

    assert set(world.finished) == {job.id for job in asked}
    assert all(world.finished[job.id] - job.at_ms >= job.work_ms for job in asked)
    edges = sorted([(to, -size) for _, to, size, _ in world.busy] + [(since, size) for since, _, size, _ in world.busy])
    level, most = 0, 0
    for _, change in edges:
        level += change
        most = max(most, level)
    assert (level, most <= world.gpus * WHOLE) == (0, True)
    work = sum(job.size * job.work_ms for job in asked)
    done = sum(size * (to - since) for since, to, size, _ in world.busy)
    assert 0 <= done - work <= world.preemptions * 8 * WHOLE * (RESTART_MS + SAVE_MS)
    assert set(world.used.values()) == {0}
    assert all(free == (0, 0, WHOLE, 0) for free in world.room.free.values())


def test_the_same_seed_gives_the_same_and_another_one_other_jobs() -> None:
    assert jobs(3) == jobs(3) != jobs(4)
    ends = [World(jobs(3), QUOTAS, ALL["Everloop"]()).run().finished for _ in range(2)]
    assert ends[0] == ends[1]


def test_who_stays_within_its_quota_gets_it_back_and_nobody_else_sees_to_that() -> None:
    hour = 3600 * 1000
    flood = [Job(f"j{i:05}", 0, "t00", 1, WHOLE, 6 * hour) for i in range(16)]
    late = [Job("late", hour, "t01", 4, WHOLE, hour)]

    waits = {
        name: World([*flood, *late], QUOTAS, ALL[name]()).run().finished["late"] - 2 * hour
        for name in ("Everloop", "FIFO, skipping", "DRF, nothing taken")
    }

    assert waits["Everloop"] <= 2 * SAVE_MS
    assert min(waits["FIFO, skipping"], waits["DRF, nothing taken"]) >= 4 * hour
