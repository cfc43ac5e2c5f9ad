"""A queue file: what it says is read as it stands, and what makes no sense is an error that names the place."""

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as some
from pydantic import ValidationError

from everloop import queues
from everloop.amounts import NO_LIMIT, UNLIMITED, Counted
from everloop.contracts import Wants
from everloop.errors import Invalid
from everloop.queues import Queue
from everloop.specs import LifecycleSpec

TREE = """
queues:
  research:
    quota: {cores: 6, gpus: 2}
    queues:
      vision: {quota: {cores: 4, gpus: 1.5}, limit: {cores: 8}, weight: 2}
      text: {quota: {cores: 2}}
  nightly: {priority: -1}
  release: {parent: research, quota: none}
"""
WHOLE = Counted(8, 4000)
MINIMAL = {"model": "m", "task": "binary", "target": "y", "time": "t", "source": {"path": "/t.csv"}}


def read(text: str) -> tuple[Queue, ...]:
    return queues.read(yaml.safe_load(text))


def test_a_tree_is_read_parents_first_with_what_a_file_may_leave_out() -> None:
    assert read(TREE) == (
        Queue("nightly", priority=-1),
        Queue("research", quota=Counted(6, 2000)),
        Queue("release", "research", quota=UNLIMITED),
        Queue("text", "research", quota=Counted(2, NO_LIMIT)),
        Queue("vision", "research", Counted(4, 1500), Counted(8, NO_LIMIT), 2),
    )


def test_who_names_no_queue_has_one_in_every_tree() -> None:
    assert [queue.id for queue in queues.check([Queue("vision")], WHOLE)] == ["default", "vision"]


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        ("queues: {a: {parent: b}, b: {parent: c}, c: {parent: a}}", "a.parent", "a > b > c > a are below each other"),
        ("queues: {a: {parent: a}}", "a.parent", "a > a are below each other"),
        ("queues: {vision: {}, text: {parent: visoin}}", "text.parent", "its parent 'visoin' is not there"),
        ("queues: {a: {quota: {cores: 9}}}", "a.quota", "quotas promise 9 cores (a 9 cores), and the pool has 8 cores"),
        ("queues: {a: {quota: {cores: 5}}, b: {quota: {cores: 4}}}", "a.quota", "promise 9 cores (a 5 cores, b 4"),
        ("queues: {a: {quota: {gpus: 4.5}}}", "a.quota", "promise 4.5 GPUs (a 4.5 GPUs), and the pool has 4 GPUs"),
        (
            "queues: {a: {quota: {cores: 2}, queues: {b: {quota: {cores: 3}}}}}",
            "b.quota",
            "promise 3 cores (b 3 cores), and queue a has a quota of 2 cores",
        ),
        (
            "queues: {a: {queues: {b: {quota: {cores: 5}}, c: {quota: {cores: 4}}}}}",
            "a.quota",
            "quotas promise 9 cores (a 9 cores), and the pool has 8 cores",
        ),
        ("queues: {a: {quota: {cores: -2}}}", "queues.a.quota.cores", "-2 is not from 0 to"),
        ("queues: {a: {quota: {cores: 1.5}}}", "queues.a.quota.cores", "1.5 is no whole number"),
        ("queues: {a: {quota: {cores: true}}}", "queues.a.quota.cores", "True is no whole number"),
        ("queues: {a: {quota: {cores: --5}}}", "queues.a.quota.cores", "'--5' is no whole number"),
        (f"queues: {{a: {{quota: {{cores: '{'9' * 5000}'}}}}}}", "queues.a.quota.cores", "is no whole number"),
        ("queues: {a: {quota: {gpus: '1e999999'}}}", "queues.a.quota.gpus", "'1e999999' is no number of GPUs"),
        ("queues: {a: {quota: {gpus: '1e5000'}}}", "queues.a.quota.gpus", "'1e5000' is no number of GPUs"),
        ("queues: {a: {quota: {gpus: 0.0005}}}", "queues.a.quota.gpus", "is no number of GPUs"),
        ("queues: {a: {quota: {gpus: .nan}}}", "queues.a.quota.gpus", "is no number of GPUs"),
        ("queues: {a: {quota: {core: 1}}}", "queues.a.quota.core", "is not known here"),
        ("queues: {a: {wieght: 1}}", "queues.a.wieght", "is not known here"),
        ("queue: {a: {}}", "queue", "is not known here"),
        ("queues: {a: {weight: -1}}", "queues.a.weight", "-1 is not from 0"),
        ("queues: {a: {quota: {cores: 4}, limit: {cores: 3}}}", "a.limit", "less than its quota of 4 cores"),
        ("queues: {a: {queues: {b: {}}}, b: {}}", "queues.b", "there is a queue b already"),
        ("queues: {a: {queues: {b: {parent: c}}}}", "queues.a.queues.b.parent", "the queue stands in a"),
        ("queues: {default: {queues: {b: {}}}}", "queues.default.queues", "whoever names no queue waits in it"),
        ("queues: {'a b': {}}", "queues.a b", "cannot be a queue's name"),
        ("queues: {'': {}}", "queues.", "cannot be a queue's name"),
        ("queues: {}", "queues", "names no queue"),
        ("queues: [a, b]", "queues", "must be a mapping"),
        ("{}", "queues", "is missing"),
        ("- a", "the file", "must be a mapping"),
        ("&all {queues: {a: *all}}", "queues.a.queues.a", "there is a queue a already"),
    ],
)
def test_a_tree_that_makes_no_sense_is_refused_with_its_place(text: str, field: str, says: str) -> None:
    with pytest.raises(Invalid) as refused:
        queues.check(read(text), WHOLE)

    assert refused.value.field == field
    assert says in str(refused.value)


def test_a_near_miss_is_guessed() -> None:
    with pytest.raises(Invalid) as refused:
        read("queues: {a: {wieght: 1}}")

    assert refused.value.hint == "did you mean weight?"


AMOUNTS = some.one_of(some.just(NO_LIMIT), some.integers(0, 50))
RESOURCES = some.builds(Counted, AMOUNTS, AMOUNTS.map(lambda n: n * 125 if n > 0 else n))


@some.composite
def trees(draw: some.DrawFn) -> tuple[Queue, ...]:
    names = draw(some.lists(some.from_regex(r"\A[a-z][a-z0-9.-]{0,6}\Z"), min_size=1, max_size=8, unique=True))
    made = []
    for place, name in enumerate(names):
        parent = draw(some.sampled_from(["", *names[:place]]))
        quota, limit = draw(RESOURCES), draw(RESOURCES)
        made.append(Queue(name, parent, quota, limit, draw(some.integers(0, 9)), draw(some.integers(-5, 5))))
    return queues.in_order(made)


@given(tree=trees())
def test_what_is_printed_is_read_again_as_the_same_tree(tree: tuple[Queue, ...]) -> None:
    assert queues.read(yaml.safe_load(yaml.safe_dump(queues.document(tree)))) == tree


@given(tree=trees())
def test_a_tree_that_passes_promises_at_each_level_no_more_than_there_is(tree: tuple[Queue, ...]) -> None:
    try:
        checked = queues.check(tree, WHOLE)
    except Invalid:
        return
    by_name = {queue.id: queue for queue in checked}

    def promised(name: str, resource: int) -> int:
        below = sum(promised(queue.id, resource) for queue in checked if queue.parent == name)
        quota = by_name[name].quota[resource] if name else WHOLE[resource]
        if quota == NO_LIMIT:
            return below
        assert below <= quota
        return quota

    for resource in (0, 1):
        promised("", resource)


@pytest.mark.parametrize(
    ("said", "field", "says"),
    [
        ({"max_runtime": "PT0.5S"}, "max_runtime", "1 second"),
        ({"max_runtime": 0}, "max_runtime", "1 second"),
        ({"max_runtime": "-PT1H"}, "max_runtime", "1 second"),
        ({"max_runtime": "P367D"}, "max_runtime", "366 days"),
        ({"queue": "a b"}, "queue", "cannot be a queue's name"),
        ({"queue": ""}, "queue", "cannot be a queue's name"),
        ({"queue": "-a"}, "queue", "cannot be a queue's name"),
        ({"queue": "a\n"}, "queue", "cannot be a queue's name"),
        ({"queue": "größe"}, "queue", "cannot be a queue's name"),
        ({"queue": "a" * 64}, "queue", "cannot be a queue's name"),
        ({"priority": -1}, "priority", "greater than or equal to 0"),
    ],
)
def test_a_spec_that_asks_for_no_real_time_or_queue_is_refused_with_its_field(
    said: dict[str, Any], field: str, says: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        LifecycleSpec.model_validate(MINIMAL | said)

    (error,) = refused.value.errors()
    assert error["loc"] == (field,)
    assert says in error["msg"]


@pytest.mark.parametrize(("said", "seconds"), [("PT1S", 1), ("PT1.9S", 1), ("PT2H", 7200), (None, 0)])
def test_a_declared_time_is_never_leased_as_none(said: str | None, seconds: int) -> None:
    spec = LifecycleSpec.model_validate(MINIMAL | ({"max_runtime": said} if said else {}))

    assert Wants.of(spec, "train").max_runtime_s == seconds


@pytest.mark.parametrize("name", ["a", "A-1", "team.vision_2", "9", "a" * 63])
def test_whatever_can_be_a_queue_can_be_named_in_a_spec(name: str) -> None:
    assert LifecycleSpec.model_validate(MINIMAL | {"queue": name}).queue == name
    assert queues.read({"queues": {name: {}}})[0].id == name
