# ruff: noqa: T201  # what a job prints is its log
"""ensemble: what several families answer, as one weighted mean and one graph.

Members learn one after the other. `params:` are those of `everloop.families.ensemble`; `selection.select` finds
members and weights among trials. The pipeline's nodes stand in the graph once, whatever the number of members.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from activities.compute import Context
from activities.compute.features import Floats, Pipeline
from activities.compute.features.graph import DOUBLE, FLOAT, Graph
from activities.compute.trainers import Examples, Question, kept, learned_with, loss_of, trainer
from activities.compute.trainers import Fitted as AnyFitted
from activities.compute.trainers.part import SHOWN, Part
from everloop.errors import IntegrityError
from everloop.families.ensemble import Member, Params


def fit(examples: Examples, params: Mapping[str, Any], context: Context) -> "Fitted":
    """Each member on the same rows. Goes on from the context's checkpoint: members that had ended are read."""
    members = Params.model_validate(dict(params)).members
    restored = context.restore()
    ended, held = Part.done(restored)
    refit = examples.iterations is not None
    fitted = [
        trainer(members[place].family).load(held[str(place)].tobytes(), examples.pipeline) for place in range(ended)
    ]
    for place in range(ended, len(members)):
        member = members[place]
        print(f"{place + 1} of {len(members)}: {member.family} {member.params}")
        part = Part(context, place, held, restored)
        own = replace(examples, rungs=None, iterations=member.iterations or (1 if refit else None))
        fitted.append(trainer(member.family).fit(own, member.params, part))
        held = held | {str(place): _bytes(fitted[-1])}
        if place + 1 < len(members):
            Part(context, place + 1, held).begins()
    whole = Fitted(list(members), fitted)
    _judge(examples, whole, context)
    return whole


def _bytes(fitted: AnyFitted) -> Any:  # noqa: ANN401
    return np.frombuffer(fitted.dump(), np.uint8)


def _judge(examples: Examples, fitted: "Fitted", context: Context) -> None:
    if not len(held := examples.validation):
        return
    told = fitted.predict(Question(lambda: examples.rows.matrix(held), dict))
    loss = loss_of(examples.pipeline, examples.goal[held], told)
    metric = "rmse" if examples.pipeline.task == "regression" else "log_loss"
    context.report(len(fitted.members) * SHOWN, **{f"validation_{metric}": loss})
    examples.reached(1, loss)


def load(dumped: bytes, pipeline: Pipeline) -> "Fitted":
    """The members. Raises `IntegrityError`."""
    arrays, about = kept.unpacked(dumped)
    try:
        members = [Member.model_validate(each) for each in about["members"]]
        found = [
            trainer(member.family).load(arrays[f"member.{place}"].tobytes(), pipeline)
            for place, member in enumerate(members)
        ]
    except (KeyError, ValueError) as error:
        raise IntegrityError(f"the model cannot be read: {str(error)[:200]}") from None
    return Fitted(members, found)


class Fitted:
    """Members that have learned, and their weights."""

    file = "model.safetensors"
    unit = "model"
    iterations = 1

    def __init__(self, members: list[Member], fitted: list[AnyFitted]) -> None:
        self.members, self.fitted = members, fitted
        total = sum(member.weight for member in members)
        self.weights = [member.weight / total for member in members]

    @property
    def settled(self) -> dict[str, Any]:
        """`params` with the rounds and epochs that each member has learned: what a refit repeats."""
        pairs = zip(self.members, self.fitted, strict=True)
        return {
            "members": [
                member.model_dump()
                | {"iterations": max(1, each.iterations), "params": learned_with(each, member.params)}
                for member, each in pairs
            ]
        }

    def predict(self, asked: Question) -> Floats:
        """Probabilities [rows, classes], or values [rows] as they were learned."""
        told = (
            weight * np.asarray(each.predict(asked), np.float64)
            for weight, each in zip(self.weights, self.fitted, strict=True)
        )
        total: Floats = sum(told, np.zeros(1))
        return total

    def dump(self) -> bytes:
        arrays = {f"member.{place}": _bytes(each) for place, each in enumerate(self.fitted)}
        return kept.packed(arrays, {"members": [member.model_dump() for member in self.members]})

    def onnx(self, graph: Graph, pipeline: Pipeline) -> str:
        """Each member's nodes, then their weighted sum in float64."""
        told = [graph.add("Cast", each.onnx(graph, pipeline), to=DOUBLE) for each in self.fitted]
        parts = [
            graph.add("Mul", name, graph.constant(weight, np.float64))
            for name, weight in zip(told, self.weights, strict=True)
        ]
        return graph.add("Cast", graph.add("Sum", *parts), to=FLOAT) if pipeline.classes else graph.add("Sum", *parts)

    def importance(self, pipeline: Pipeline) -> Mapping[str, float]:  # noqa: ARG002
        """Nothing: members measure it in units of their own."""
        return {}

    def thresholds(self) -> Mapping[int, list[float]]:
        """Of all members."""
        found: dict[int, set[float]] = {}
        for each in self.fitted:
            for place, values in each.thresholds().items():
                found.setdefault(place, set()).update(values)
        return {place: sorted(values) for place, values in found.items()}
