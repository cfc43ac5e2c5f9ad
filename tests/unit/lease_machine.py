"""A pool to which anything happens: Hypothesis chooses what, the policy decides, the checker looks at each decision."""

import random
from collections.abc import Sequence

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from activities import lease_policy
from activities.lease_policy.state import (
    NO_LIMIT,
    Amount,
    Counted,
    Decision,
    Device,
    Explain,
    Grant,
    Held,
    Policy,
    PoolState,
    Queue,
    Request,
    Reserve,
    Resize,
)
from tests.unit import lease_checker as checker

GANGS = st.sampled_from(((2, 2), (3, 4), (1, 3)))
MEMBERS = (
    Amount(1, 0, 0, 0),
    Amount(1, 100, 0, 0),
    Amount(2, 500, 0, 0),
    Amount(2, 100, 0, 0),
    Amount(4, 100, 0, 0),
    Amount(1, 100, 500, 0),
    Amount(2, 100, 1000, 300),
    Amount(9, 0, 0, 0),
)
TREES = (
    (("a", ""), ("b", "")),
    (("a", ""), ("b", ""), ("c", "")),
    (("x", ""), ("y", ""), ("a", "x"), ("b", "x"), ("c", "y")),
    (("x", ""), ("y", ""), ("z", "x"), ("a", "z"), ("b", "x"), ("c", "y"), ("lost", "nobody")),
)
SECONDS = (0, 1, 20, 61, 125, 700, 4000, 15_000, 90_000)
bounds = st.sampled_from((NO_LIMIT, NO_LIMIT, 0, 1, 2, 2, 4, 6))
counts = st.builds(Counted, bounds, st.sampled_from((NO_LIMIT, NO_LIMIT, 0, 500, 1000, 2000)))
queues = st.builds(
    lambda quota, limit, weight, priority: Queue("", "", quota, limit, weight, priority),
    counts,
    st.one_of(*[st.just(Counted(NO_LIMIT, NO_LIMIT))] * 4, counts),
    st.sampled_from((1, 1, 2, 0)),
    st.sampled_from((0, 0, 0, 1)),
)
machines = st.sampled_from((Amount(2, 1024), Amount(4, 2048), Amount(4, 2048, 1000, 1000), Amount(4, 700)))
some = st.integers(0, 11)


class Pool(RuleBasedStateMachine):
    """The ledger of a pool in memory, and the processes that its leases really have."""

    def __init__(self) -> None:
        super().__init__()
        self.state = PoolState()
        self.now = 1_700_000_000_000
        self.policy = Policy()
        self.token = 0
        self.number = 0
        self.processes: dict[int, tuple] = {}
        """Parts of each lease whose processes are not proven dead."""
        self.ended = 0

    @initialize(
        devices=st.lists(machines, min_size=2, max_size=4),
        light=st.booleans(),
        tree=st.sampled_from(TREES),
        with_=st.lists(queues, min_size=7, max_size=7),
        runtime=st.sampled_from((600, 600, 0)),
    )
    def begin(self, devices, light, tree, with_, runtime) -> None:
        named = [Device(f"d{i}", f"n{i // 2}", whole) for i, whole in enumerate(devices)]
        named += [Device("light", "n0", Amount(1, 1024), light=True)] if light else []
        filled = [queue._replace(id=name, parent=up) for (name, up), queue in zip(tree, with_, strict=False)]
        self.policy = Policy(min_runtime_s=runtime)
        self.state = PoolState(tuple(named), tuple(filled))

    # --- what happens

    @rule(
        queue=st.sampled_from((*"aaabbbbcc", "x")),
        member=st.sampled_from(MEMBERS),
        priority=st.sampled_from((50, 50, 75)),
        preemptible=st.sampled_from((True, True, False)),
        light=st.sampled_from((False, False, False, True)),
        members=st.sampled_from(((1, 1), (1, 1), (2, 2), (1, 3), (3, 4))),
        runtime=st.sampled_from((0, 0, 300, 3600)),
        times=st.sampled_from((1, 2, 4, 8)),
    )
    def submit(self, queue, member, priority, preemptible, light, members, runtime, times) -> None:
        for _ in range(min(times, 24 - len(self.state.waiting))):
            self.number += 1
            fresh = Request(
                f"r{self.number:03}", self.number, self.now, queue, member, priority, preemptible, light, *members,
                runtime * 1000,
            )  # fmt: skip
            self.state = self.state._replace(waiting=(*self.state.waiting, fresh))
        self.decides()

    @rule(seconds=st.sampled_from(SECONDS), accepted=st.sampled_from((True, True, True, False)))
    def time_passes(self, seconds, accepted) -> None:
        if accepted:
            self.state = self.state._replace(
                held=tuple(h._replace(state="active") if h.state == "offered" else h for h in self.state.held)
            )
        self.now += seconds * 1000
        self.decides()

    @rule(queue=st.sampled_from("ab"), other=st.sampled_from("ba"), seconds=st.sampled_from((20, 700, 15_000)))
    def one_queue_fills_the_pool_before_another_comes(self, queue, other, seconds) -> None:
        self.submit(queue, MEMBERS[0], 50, True, False, (1, 1), 0, 8)
        self.time_passes(seconds, True)
        self.submit(other, MEMBERS[2], 75, True, False, (1, 1), 0, 2)
        self.time_passes(20, True)

    @rule(
        queue=st.sampled_from("ab"), gang=st.sampled_from(((2, 2), (3, 4), (1, 3))), seconds=st.sampled_from((125, 700))
    )
    def a_gang_starves_behind_work_of_declared_length(self, queue, gang, seconds) -> None:
        self.submit(queue, MEMBERS[0], 75, False, False, (1, 1), 3600, 8)
        self.submit(queue, MEMBERS[2], 75, True, False, (1, 1), 3600, 4)
        self.time_passes(20, True)
        self.submit(queue, MEMBERS[2], 75, True, False, gang, 0, 1)
        self.time_passes(seconds, True)
        self.submit(queue, MEMBERS[0], 50, True, False, (1, 1), 300, 2)

    @rule(queue=st.sampled_from("ab"), member=st.sampled_from(MEMBERS[:4]), seconds=st.sampled_from((20, 700)))
    def elastic_work_is_alone(self, queue, member, seconds) -> None:
        self.submit(queue, member, 50, True, False, (1, 3), 0, 1)
        self.state = self.state._replace(waiting=())
        for held in self.state.held[::2]:
            self._ends(held)
        self.time_passes(seconds, True)

    @rule(which=some)
    def a_holder_is_done(self, which) -> None:
        held = self._one(which, "active", "noticed", "offered")
        if held:
            self._ends(held)
            self.decides()

    @rule(which=some, ago=st.sampled_from((0, 5, 100)))
    def a_checkpoint_is_written(self, which, ago) -> None:
        held = self._one(which, "active", "noticed")
        if held:
            self._replace(held, held._replace(checkpoint_ms=self.now - ago * 1000))

    @rule(which=some)
    def a_notice_is_obeyed(self, which) -> None:
        held = self._one(which, "noticed")
        if held:
            self._ends(held)
            self._again(held)
            self.decides()

    @rule()
    def all_notices_are_obeyed(self) -> None:
        for held in [h for h in self.state.held if h.state == "noticed"]:
            self._ends(held)
            self._again(held)
        self.decides()

    @rule(which=some)
    def a_kill_is_proven(self, which) -> None:
        held = self._one(which, "killing")
        if held:
            self._ends(held)
            self._again(held)
            self.decides()

    @rule(which=some, what=st.sampled_from(("lost", "back", "back", 0, 30, 300)))
    def a_device_is_lost_or_drained_or_back(self, which, what) -> None:
        by = self.now + what * 1000 if isinstance(what, int) else 0
        self._device(which, open=what == "back", drain_by_ms=by)

    @rule(which=some, quota=counts, limit=counts)
    def a_quota_is_edited(self, which, quota, limit) -> None:
        edited = list(self.state.queues)
        which %= len(edited)
        edited[which] = edited[which]._replace(quota=quota, limit=limit)
        self.state = self.state._replace(queues=tuple(edited))
        self.decides()

    @rule(which=some)
    def a_request_is_cancelled(self, which) -> None:
        if self.state.waiting:
            gone = self.state.waiting[which % len(self.state.waiting)]
            self.state = self.state._replace(waiting=tuple(r for r in self.state.waiting if r is not gone))
            self.decides()

    # --- the ledger's part

    def _one(self, which: int, *states: str) -> Held | None:
        found = [held for held in self.state.held if held.state in states]
        return found[which % len(found)] if found else None

    def _device(self, which: int, **changes) -> None:
        changed = list(self.state.devices)
        which %= len(changed)
        changed[which] = changed[which]._replace(**changes)
        self.state = self.state._replace(devices=tuple(changed))
        self.decides()

    def _replace(self, held: Held, by: Held | None) -> None:
        kept = [by if one.token == held.token else one for one in self.state.held]
        self.state = self.state._replace(held=tuple(one for one in kept if one is not None))

    def _ends(self, held: Held) -> None:
        """Its holder, or the proof of its death, gives its parts back; what it used goes to its queue's usage."""
        self._replace(held, None)
        self.processes.pop(held.token, None)
        self.ended += 1
        booked = list(self.state.queues)
        light = {d.name for d in self.state.devices if d.light}
        counts_ = held._replace(members=tuple(p for p in held.members if p.device not in light))
        for i, queue in enumerate(booked):
            if queue.id == held.request.queue:
                used = lease_policy.used_by(counts_, queue.usage_at_ms, self.now)
                total = Counted(queue.usage.cores + used.cores, queue.usage.milli_gpu + used.milli_gpu)
                booked[i] = queue._replace(usage=total)
        self.state = self.state._replace(queues=tuple(booked))

    def _again(self, held: Held) -> None:
        """It waits again, in its old place."""
        again = held.request._replace(preempted=held.request.preempted + 1)
        if all(request.id != again.id for request in self.state.waiting):
            self.state = self.state._replace(waiting=(*self.state.waiting, again))

    # --- the decision, and whether it is right

    def decides(self, fuel: int = 1000) -> None:
        before = self.state
        made = lease_policy.decide(before, self.now, self.policy, fuel)
        steps, self.state = self._done(before, made)
        standings = lease_policy.standing(before, self.now, self.policy)
        found = checker.problems(before, made, self.state, steps, standings, self.now, self.policy, fuel)
        found += checker.share_problems(before, standings, self.policy)
        found += self._overlaps()
        again = lease_policy.decide(self.state, self.now, self.policy, fuel)
        if again != tuple(one for one in made if isinstance(one, Explain | Reserve)):
            found.append(f"I17: decided again, it does {[one for one in again if one not in made]}")
        if lease_policy.decide(shuffled(before, self.token), self.now, self.policy, fuel) != made:
            found.append("I21: the order of the input shows")
        assert not found, "\n".join([*found, "of", *map(str, made)])

    def _done(
        self, state: PoolState, made: Sequence[Decision]
    ) -> tuple[list[tuple[Decision, PoolState, PoolState]], PoolState]:
        steps = []
        acts = [one for one in made if not isinstance(one, Explain | Reserve)]
        for one in acts:
            following = lease_policy.apply(state, (one,), self.now, self.token + 1)
            if isinstance(one, Grant | Resize):
                self.token += 1
                if isinstance(one, Resize):
                    del self.processes[one.token]
                self.processes[self.token] = one.members
                tokens = {held.token for held in following.held}
                assert self.token in tokens, f"I5: token {self.token} was not taken"
            steps.append((one, state, following))
            state = following
        same = lease_policy.apply(state, made[len(acts) :], self.now, self.token + 1)
        assert same == state, "a reason or a reservation changes the state"
        return steps, state

    def _overlaps(self) -> list[str]:
        """I1 and I7 by the processes themselves: what runs, or may still run, fits on its device."""
        found = []
        for device in self.state.devices:
            parts = [
                part.amount for members in self.processes.values() for part in members if part.device == device.name
            ]
            for r, whole in enumerate(device.whole):
                if sum(amount[r] for amount in parts) > whole:
                    found.append(f"I7: more runs on {device.name} than it has")
        return found


def shuffled(state: PoolState, seed: int) -> PoolState:
    numbers = random.Random(seed)
    return PoolState(*(tuple(numbers.sample(one, len(one))) for one in state))
