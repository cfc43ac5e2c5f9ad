# ruff: noqa: T201  # what a job prints is its log
"""Functions of users. What one returns is turned into ONNX at once, and compared with it row by row.

So evaluation, export and predictions need nothing of the user's, and nobody's pickle is ever read.
`calling` finds and calls the function, `given` is what it gets, `returned` what it may give back, `stored` the rest.
"""

from collections.abc import Mapping
from typing import Any

from activities.compute import Context
from activities.compute.features import Pipeline
from activities.compute.trainers import Examples
from activities.compute.trainers.part import Part
from activities.compute.trainers.user.calling import call, function_of, seed_everything
from activities.compute.trainers.user.given import Given
from activities.compute.trainers.user.proof import prove
from activities.compute.trainers.user.returned import model_of, said_by
from activities.compute.trainers.user.stored import Fitted
from activities.jobs.gang import RankEnded
from everloop.errors import TrainerFailed

__all__ = ["Fitted", "fit", "load"]


def fit(examples: Examples, params: Mapping[str, Any], context: Context) -> Fitted:
    """Call the function that the spec names, and keep what it has learned as ONNX.

    Raises `TrainerFailed` when it cannot be called, raises, or returns what nobody can ask; `ParityFailed` when the
    graph answers otherwise than what was returned.
    """
    name = examples.spec.trainer
    function = function_of(name)
    training = Given(examples, params, context)
    seed_everything(training.seed, training.cores)
    context.limit()
    answer = call(name, function, training)
    if answer is None and context.rank:
        raise _ended(examples, context)
    said = said_by(answer, training)
    learned = model_of(said, examples, name)
    fitted = Fitted.of(learned, examples.pipeline, said.iterations or training.steps)
    fitted.unit = training.unit
    prove(fitted, learned, said, examples, name)
    print(f"{name} learned; {len(fitted.dump()):,} bytes of ONNX answer as it does")
    return fitted


def _ended(examples: Examples, context: Context) -> BaseException:
    """A rank without an answer has done its part, unless there are folds: then it is needed for the next one."""
    if not isinstance(context, Part):
        return RankEnded()
    name, hint = examples.spec.trainer, "return the model on every rank, or take `validation: {method: holdout}`"
    return TrainerFailed(f"{name} returned None on rank {context.rank}, and folds follow", field="trainer", hint=hint)


def load(dumped: bytes, pipeline: Pipeline) -> Fitted:
    """The graph that `fit` has kept."""
    return Fitted(dumped, pipeline)
