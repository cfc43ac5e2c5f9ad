"""Runs the workloads; see the package."""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from bench.figures import said
from bench.pool_simulation import workloads
from bench.pool_simulation.deciders import ALL
from bench.pool_simulation.workloads import QUOTAS, SECOND, WHOLE, Job
from bench.pool_simulation.world import World

OURS, STATIC, SRTF = "Everloop", "static partition", "SRTF (oracle)"
BOUND_S = 735
"""How long one within its quota may wait while others are over theirs (gpu.md 2.6)."""
HEAD = (
    *("decider", "mean s", "p50 s", "p99 s", "wait s", "allocated", "p99 rho", "rho > 1.05"),
    *("taken back", "wasted", "kept waiting s", "starved s"),
)


class Row(NamedTuple):
    """Of one simulation."""

    mean: float
    p50: float
    p99: float
    wait: float
    allocated: float
    unfair_p99: float
    """Of rho: the time to completion, to that on the tenant's own part of a static partition."""
    unfair_part: float
    preemptions: float
    wasted: float
    kept: float
    starved: float


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.pool_simulation")
    parser.add_argument("--jobs", type=int, default=12_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.9])
    parser.add_argument("--workloads", nargs="+", default=["W1", "W3", "W4", "W6"])
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    met = True
    with ProcessPoolExecutor(asked.processes) as processes:
        if "W1" in asked.workloads:
            for load in asked.loads:
                met &= _philly(processes, asked.jobs, asked.seeds, load)
        if "W3" in asked.workloads:
            met &= _openb(processes, asked.jobs // 2, asked.seeds)
        if "W4" in asked.workloads:
            met &= _burst(processes, min(asked.jobs, 10_000), asked.seeds)
        if "W6" in asked.workloads:
            met &= _adversaries(processes, asked.seeds)
    return 0 if met else 1


def _simulated(name: str, jobs: list[Job], quotas: dict[str, int]) -> World:
    return World(jobs, quotas, ALL[name]()).run()


# --- W1 -------------------------------------------------------------------------------------------


def _philly(processes: ProcessPoolExecutor, number: int, seeds: int, load: float) -> bool:
    jobs = {seed: workloads.philly(seed, number, load) for seed in range(1, seeds + 1)}
    running = {(name, seed): processes.submit(_simulated, name, jobs[seed], QUOTAS) for name in ALL for seed in jobs}
    worlds = {key: one.result() for key, one in running.items()}
    rows = {name: [_row(jobs[s], worlds[name, s], worlds[STATIC, s]) for s in jobs] for name in ALL}
    print(f"W1: {number} jobs, load {load}, {sum(QUOTAS.values())} GPUs, {len(QUOTAS)} tenants, mean of {seeds} seeds")
    means = _table(rows)
    ours, static, oracle = means[OURS], means[STATIC], means[SRTF]
    print(
        f"lost to the oracle: {ours.mean / oracle.mean - 1:+.1%} mean completion, {ours.p99 / oracle.p99 - 1:+.1%} p99"
    )
    better = [name for name, row in means.items() if name not in (OURS, SRTF) and row.mean < ours.mean]
    print("better than ours on mean completion:", ", ".join(better) or "none but the oracle")
    if load != 0.9:
        return True
    return all(
        [
            said("allocated_part", ours.allocated, 0.8, least=True),
            said("completion_times_better_than_static", static.mean / ours.mean, 4, least=True),
            said("in_quota_starved_s", ours.starved, 0),
            said("in_quota_longest_wait_s", ours.kept, BOUND_S),
        ]
    )


def _row(jobs: Sequence[Job], world: World, static: World) -> Row:
    completion = [(world.finished[job.id] - job.at_ms) / SECOND for job in jobs]
    waits = [took - job.work_ms / SECOND for took, job in zip(completion, jobs, strict=True)]
    rho = [
        took / max((static.finished[job.id] - job.at_ms) / SECOND, 1)
        for took, job in zip(completion, jobs, strict=True)
    ]
    span = max(world.last_arrival, 1)
    within = sum(size * max(min(to, span) - since, 0) for since, to, size, _ in world.busy)
    whole = sum(size * (to - since) for since, to, size, _ in world.busy)
    return Row(
        mean=sum(completion) / len(jobs),
        p50=_part(completion, 0.5),
        p99=_part(completion, 0.99),
        wait=sum(waits) / len(jobs),
        allocated=within / (span * world.gpus * WHOLE),
        unfair_p99=_part(rho, 0.99),
        unfair_part=sum(one > 1.05 for one in rho) / len(rho),
        preemptions=world.preemptions,
        wasted=world.wasted / whole,
        kept=world.kept_waiting_most / SECOND,
        starved=world.starved_most / SECOND,
    )


def _part(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(int(len(values) * part), len(values) - 1)]


def _table(rows: dict[str, list[Row]]) -> dict[str, Row]:
    """Means over the seeds; of the longest waits the longest."""
    means = {}
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    for name, of_seeds in rows.items():
        mean = Row(*(sum(values) / len(of_seeds) for values in zip(*of_seeds, strict=True)))
        means[name] = mean._replace(kept=max(r.kept for r in of_seeds), starved=max(r.starved for r in of_seeds))
        cells = [f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}" for value in means[name]]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    return means


# --- W3, W4, W6 -----------------------------------------------------------------------------------


def _openb(processes: ProcessPoolExecutor, number: int, seeds: int) -> bool:
    """Parts of GPUs: how many tasks start at once, against whole GPUs for all."""
    load, served = 1.0, {}
    for whole in (False, True):
        jobs = [workloads.openb(seed, number, load, whole=whole) for seed in range(1, seeds + 1)]
        worlds = list(processes.map(_simulated, [OURS] * seeds, jobs, [QUOTAS] * seeds))
        served[whole] = sum(sum(at <= world.last_arrival for at in world.finished.values()) for world in worlds)
        waits = [
            (world.finished[job.id] - job.at_ms - job.work_ms) / SECOND
            for of_seed, world in zip(jobs, worlds, strict=True)
            for job in of_seed
        ]
        kind = "whole GPUs" if whole else "parts of GPUs"
        print(f"W3, {kind}: {served[whole]} of {number * seeds} done within the arrivals' span, mean wait "
              f"{sum(waits) / len(waits):,.0f} s, p99 {_part(waits, 0.99):,.0f} s")  # fmt: skip
    return said("tasks_more_than_with_whole_gpus_percent", (served[False] / served[True] - 1) * 100, 15, least=True)


def _burst(processes: ProcessPoolExecutor, trials: int, seeds: int) -> bool:
    """Quiet tenants beside one that floods the pool."""
    waits: dict[bool, list[float]] = {True: [], False: []}
    for quiet_only, of_kind in waits.items():
        jobs = [workloads.burst(seed, trials, quiet_only=quiet_only) for seed in range(1, seeds + 1)]
        for of_seed, world in zip(jobs, processes.map(_simulated, [OURS] * seeds, jobs, [QUOTAS] * seeds), strict=True):
            of_kind += [
                (world.finished[job.id] - job.at_ms - job.work_ms) / SECOND for job in of_seed if job.tenant != "t00"
            ]
    calm, flooded = _part(waits[True], 0.95), _part(waits[False], 0.95)
    print(f"W4: {trials} trials in a minute; quiet tenants wait p95 {flooded:.0f} s, {calm:.0f} s without the burst; "
          f"longest {max(waits[False]):.0f} s")  # fmt: skip
    return said("quiet_p95_wait_times_that_without_burst", flooded / max(calm, 1), 2)


def _adversaries(processes: ProcessPoolExecutor, seeds: int) -> bool:
    half = sum(QUOTAS.values()) // 2
    jobs = [workloads.gang(seed) for seed in range(1, seeds + 1)]
    quotas = {"t00": 512, "t01": sum(QUOTAS.values()) - 512}
    waits = [
        (world.finished["gang"] - 3600 * SECOND - 1800 * SECOND) / SECOND
        for world in processes.map(_simulated, [OURS] * seeds, jobs, [quotas] * seeds)
    ]
    print("W6a: the gang of 512 GPUs waits, s:", ", ".join(f"{wait:.0f}" for wait in waits))
    met = said("gang_longest_wait_s", max(waits), BOUND_S)
    both = {"t00": half, "t01": half}
    jobs = [workloads.rivals(seed, 2_000) for seed in range(1, seeds + 1)]
    parts = []
    for world in processes.map(_simulated, [OURS] * seeds, jobs, [both] * seeds):
        until = max(world.finished.values()) // 2  # both still want all of it
        time = dict.fromkeys(both, 0)
        for since, to, size, tenant in world.busy:
            time[tenant] += size * max(min(to, until) - since, 0)
        parts.append(time["t00"] / sum(time.values()))
    print("W6b: the first of two equal tenants has, of their GPU time:", ", ".join(f"{part:.1%}" for part in parts))
    return met & said("equal_tenants_off_half_percent", max(abs(part - 0.5) for part in parts) * 100, 5)


if __name__ == "__main__":
    sys.exit(main())
