"""Does the kept graph answer as what the user's function returned, and are its answers any?"""

import numpy as np
from numpy.typing import NDArray

from activities.compute.features import Floats, Pipeline
from activities.compute.inference import Columns
from activities.compute.inference import Model as Ready
from activities.compute.trainers import Examples, Question
from activities.compute.trainers.user.calling import call
from activities.compute.trainers.user.given import GivenRows
from activities.compute.trainers.user.returned import Model, numbers, wide
from activities.compute.trainers.user.stored import Fitted
from everloop.errors import ParityFailed, TrainerFailed
from everloop.trainer import Learned

COMPARED_ROWS = 10_000
ASKED_ALONE = 64
SUM_TOLERANCE = 1e-3


def prove(fitted: Fitted, learned: Model, said: Learned, examples: Examples, name: str) -> None:
    """Compare what is kept with what was returned, on rows of the data and on edges.

    Of plain ONNX the function's own `predict` is compared, on real rows, where it gave one; that answers are numbers
    is checked on all. Raises `ParityFailed` with the first rows that differ, `TrainerFailed` with an answer that is
    no probability or no number.
    """
    from activities.compute import export

    pipeline, table = examples.pipeline, examples.raw.table()
    signature = export.signature_of(examples.spec, pipeline, table)
    graph = Ready(export.build(pipeline, fitted).SerializeToString(), signature)
    try:
        export.prove(pipeline, _Checked(fitted, learned, name), graph, table, seed=examples.spec.training.seed)
    except ParityFailed as error:
        hint = "in front of trees leave scalers off, and fill in what is missing; or return ONNX of your own"
        raise ParityFailed(f"what {name} returned and its ONNX: {error}", field="trainer", hint=hint) from None
    if said.predict is not None and learned.live is None:
        _compare_with_own(fitted, said, examples, name)
    names = [entry.name for entry in pipeline.inputs]
    _each_row_by_itself(graph, table.arrays(names, np.arange(min(len(table), ASKED_ALONE))), pipeline, name)


def _each_row_by_itself(graph: Ready, columns: Columns, pipeline: Pipeline, name: str) -> None:
    """Raise `TrainerFailed` where a row is answered otherwise alone than among others: predictions come one by one."""
    from activities.compute.export import TOLERANCE

    rows = len(next(iter(columns.values())))
    together = graph.predict(columns).values.reshape(rows, -1)
    for place in range(rows):
        one = {column: values[place : place + 1] for column, values in columns.items()}
        alone, among = graph.predict(one).values.reshape(-1), together[place]
        if np.allclose(alone, among, rtol=TOLERANCE, atol=TOLERANCE * pipeline.scale):
            continue
        raise TrainerFailed(
            f"{name} answers a row by the rows that are asked with it: alone {_shown(alone)}, among {rows:,} "
            f"{_shown(among)}, for the row {_row(columns, place)}",
            field="trainer",
            hint="take no mean and no rank over the rows of a batch: learn them, and keep them in the model",
        )


class _Checked:
    """What was returned, asked through the protocol; an answer that is none is an error that names the row."""

    def __init__(self, fitted: Fitted, learned: Model, name: str) -> None:
        self._fitted, self._live, self._name = fitted, learned.live, name
        self.file, self.iterations, self.unit = fitted.file, fitted.iterations, fitted.unit
        self.dump, self.onnx, self.importance = fitted.dump, fitted.onnx, fitted.importance

    def predict(self, asked: Question) -> Floats:
        told = self._fitted.predict(asked) if self._live is None else self._live(asked.matrix)
        must_be_answers(told, self._fitted.pipeline, asked.columns, self._name)
        return told

    def thresholds(self) -> dict[int, list[float]]:
        return {}


def must_be_answers(told: Floats, pipeline: Pipeline, columns: Columns, name: str) -> None:
    """Raise `TrainerFailed` with the first row whose answer is no number, or no probabilities."""
    if pipeline.task == "regression":
        wrong, what = ~np.isfinite(told), "a number"
    else:
        inside = np.isfinite(told).all(axis=1) & (told >= -SUM_TOLERANCE).all(axis=1)
        wrong, what = ~(inside & (np.abs(told.sum(axis=1) - 1) <= SUM_TOLERANCE)), "probabilities that sum to 1"
    if not wrong.any():
        return
    place = int(np.flatnonzero(wrong)[0])
    raise TrainerFailed(
        f"{name} answers {_shown(told[place])} and not {what}, for instance for the row {_row(columns, place)}",
        field="trainer",
        hint="missing values, unseen categories and numbers out of the usual range come in production: answer them too",
    )


def _compare_with_own(fitted: Fitted, said: Learned, examples: Examples, name: str) -> None:
    from activities.compute.export import TOLERANCE

    pipeline = examples.pipeline
    places = np.sort(np.concatenate([examples.train, examples.validation]))
    if len(places) > COMPARED_ROWS:
        random = np.random.default_rng(examples.spec.training.seed)
        places = np.sort(random.choice(places, COMPARED_ROWS, replace=False))
    given = GivenRows(examples, places)
    assert said.predict is not None  # noqa: S101  # the caller has looked
    own = wide(numbers(call(name, said.predict, given), f"the predict of {name}"), pipeline)
    if pipeline.task == "regression" and given.raw:
        own = (own - pipeline.center) / pipeline.scale
    names = [entry.name for entry in pipeline.inputs]
    asked = Question(lambda: examples.rows.matrix(places), lambda: examples.raw(names, examples.rows.rows[places]))
    told = fitted.predict(asked)
    if own.shape != told.shape:
        message = f"the predict of {name} answers an array {list(own.shape)}, and {list(told.shape)} is expected"
        raise TrainerFailed(message, field="trainer")
    apart = np.abs(told - own).reshape(len(places), -1).max(axis=1)
    wrong = np.flatnonzero(~(apart <= TOLERANCE))
    if len(wrong):
        row = _row(asked.columns, int(wrong[0]))
        message = f"{len(wrong)} of {len(places)} rows differ by up to {np.nanmax(apart):.3g}, for instance {row}"
        hint = f"it answers {_shown(own[wrong[0]])}, the graph {_shown(told[wrong[0]])}"
        raise ParityFailed(f"the predict of {name} and its ONNX: {message}", field="trainer", hint=hint)


def _shown(told: NDArray[np.float64] | np.float64) -> str:
    return str(np.round(told, 6).tolist())[:100]


def _row(columns: Columns, place: int) -> str:
    return str({name: values[place : place + 1].tolist()[0] for name, values in list(columns.items())[:20]})[:400]
