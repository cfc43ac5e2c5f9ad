# ruff: noqa: T201  # what a job prints is its log
"""linear: logistic regression, or a line through numbers, with L1 and L2; all of it in float64, also in the graph.

`params:` are those of `everloop.families.linear`. Its own encoding is part of its graph: numbers are standardised
and cut at 20 standard deviations, a missing one counts as the average beside a flag where training has seen some
missing, lines may bend at quantiles, and each frequent value of a category has a coefficient.
It learns in one go: L-BFGS, and with L1 proximal steps after it (FISTA). No checkpoints: it takes seconds.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize
import scipy.sparse
import scipy.special
from numpy.typing import NDArray

from activities.compute import Context
from activities.compute.features import Floats, Matrix, Pipeline
from activities.compute.features.graph import DOUBLE, FLOAT, INT64, Graph
from activities.compute.trainers import Examples, Question, kept, loss_of
from everloop.families.linear import Params

FAR = 20.0
"""Standard deviations beyond which numbers are cut: nobody has seen the line go on there."""
LEAST_SPREAD = 1e-30
BATCH_ROWS = 65_536
MOST_CELLS = 40_000_000
"""Numbers in memory, float64; of a longer table so many rows are drawn."""
SAMPLE_ROWS = 20_000
"""That quantiles are taken of."""
TOLERANCE = 1e-7
"""Of a step, in units of the coefficients: smaller ones end the search."""

Design = tuple[Floats, "scipy.sparse.csr_matrix | None"]


@dataclass(frozen=True)
class Encoding:
    """How features become columns of numbers, each of which has a coefficient."""

    mean: Floats
    """Of the first features, which are numbers; the others are codes."""
    spread: Floats
    flagged: NDArray[np.int64]
    """Numbers of which some are missing in the train rows."""
    bends: Floats
    """[numbers, knots], in standard deviations; NaN: none."""
    starts: NDArray[np.int64]
    """Where the codes of each category begin in `column`."""
    column: NDArray[np.int64]
    """Of every code of every category: which of the one-hot columns it is."""

    @property
    def numbers(self) -> int:
        return len(self.mean)

    @property
    def bent(self) -> tuple[NDArray[np.int64], Floats]:
        """Which number bends, and where: one of each for a column."""
        which, where = np.nonzero(~np.isnan(self.bends))
        return which, self.bends[which, where]

    @property
    def width(self) -> int:
        """Columns that are not one-hot."""
        return self.numbers + len(self.flagged) + len(self.bent[0])

    @property
    def levels(self) -> int:
        """One-hot columns."""
        return int(self.column.max(initial=-1)) + 1

    def line(self, matrix: Matrix) -> Floats:
        """Columns that are not one-hot, [rows, width]."""
        wide = matrix[:, : self.numbers].astype(np.float64)
        missing = np.isnan(wide)
        scaled = np.clip((wide - self.mean) / self.spread, -FAR, FAR)
        scaled[missing] = 0.0
        which, where = self.bent
        return np.concatenate([scaled, missing[:, self.flagged], np.maximum(scaled[:, which] - where, 0.0)], axis=1)

    def codes(self, matrix: Matrix) -> NDArray[np.int64]:
        """One-hot columns, [rows, categories]."""
        found: NDArray[np.int64] = self.column[matrix[:, self.numbers :].astype(np.int64) + self.starts]
        return found

    def in_graph(self, graph: Graph, features: str) -> tuple[str, str]:
        """`line` and `codes`; the second is empty without categories."""
        wide = graph.add("Cast", _columns(graph, features, 0, self.numbers), to=DOUBLE)
        missing = graph.add("IsNaN", wide)
        scaled = graph.add("Sub", wide, graph.constant(self.mean, np.float64))
        scaled = graph.add("Div", scaled, graph.constant(self.spread, np.float64))
        scaled = graph.add("Where", missing, graph.constant([[0.0]], np.float64), scaled)
        far, near = graph.constant([[FAR]], np.float64), graph.constant([[-FAR]], np.float64)
        scaled = graph.add("Where", graph.add("Greater", scaled, far), far, scaled)
        parts = [graph.add("Where", graph.add("Less", scaled, near), near, scaled)]
        which, where = self.bent
        if len(self.flagged):
            flags = graph.add("Cast", missing, to=DOUBLE)
            parts.append(graph.add("Gather", flags, graph.constant(self.flagged, np.int64), axis=1))
        if len(which):
            bent = graph.add("Gather", parts[0], graph.constant(which, np.int64), axis=1)
            over = graph.add("Sub", bent, graph.constant(where, np.float64))
            positive = graph.add("Greater", over, graph.constant([[0.0]], np.float64))
            parts.append(graph.add("Where", positive, over, graph.constant([[0.0]], np.float64)))
        line = graph.add("Concat", *parts, axis=1)
        if not len(self.starts):
            return line, ""
        codes = graph.add("Cast", _columns(graph, features, self.numbers, self.numbers + len(self.starts)), to=INT64)
        places = graph.add("Add", codes, graph.constant(self.starts, np.int64))
        return line, graph.add("Gather", graph.constant(self.column, np.int64), places)


def _columns(graph: Graph, features: str, low: int, high: int) -> str:
    ends = (graph.constant([end], np.int64) for end in (low, high, 1))
    return graph.add("Slice", features, *ends)


def fit(examples: Examples, params: Mapping[str, Any], context: Context) -> "Fitted":
    """The coefficients with the least penalised loss of the train rows."""
    chosen = Params.model_validate(dict(params))
    pipeline, places = examples.pipeline, examples.drawn(MOST_CELLS, "what is learned from is kept in memory")
    encoding = encoding_of(examples, places, chosen)
    weights, goal = examples.weight(places), examples.goal[places]
    problem = Problem.of(design_of(encoding, examples, places), goal, weights, pipeline, chosen)
    flat = _learned(problem, chosen, context)
    coefficients, intercepts = problem.parts(flat)
    kept_ = Fitted(encoding, coefficients, intercepts, pipeline, _criteria(problem, flat))
    print(
        f"{len(places):,} rows, {np.count_nonzero(coefficients):,} of {coefficients.size:,} coefficients are not 0; "
        f"AIC {kept_.said['aic']:.1f}, BIC {kept_.said['bic']:.1f}"
    )
    _judge(examples, kept_, context)
    return kept_


def _judge(examples: Examples, fitted: "Fitted", context: Context) -> None:
    told: dict[str, float] = dict(fitted.said)
    if len(held := examples.validation):
        answers = fitted.predict(Question(lambda: examples.rows.matrix(held), dict))
        loss = loss_of(examples.pipeline, examples.goal[held], answers)
        told[f"validation_{'rmse' if examples.pipeline.task == 'regression' else 'log_loss'}"] = loss
        context.report(1, **told)
        examples.reached(1, loss)
    else:
        context.report(1, **told)


def load(dumped: bytes, pipeline: Pipeline) -> "Fitted":
    """The coefficients and the encoding. Raises `IntegrityError`."""
    arrays, about = kept.unpacked(dumped)
    coefficients, intercepts = arrays.pop("coefficients"), arrays.pop("intercepts")
    return Fitted(Encoding(**arrays), coefficients, intercepts, pipeline, about["said"])


class Fitted:
    """Coefficients, and the encoding they are of."""

    file = "model.safetensors"
    unit = "iteration"
    iterations = 1

    def __init__(
        self, encoding: Encoding, coefficients: Floats, intercepts: Floats, pipeline: Pipeline, said: dict[str, float]
    ) -> None:
        """*coefficients* [columns, outputs], *intercepts* [outputs]; a binary target has one output."""
        self.encoding, self.coefficients, self.intercepts = encoding, coefficients, intercepts
        self.pipeline = pipeline
        self.said = said
        """AIC and BIC, for the report."""

    def predict(self, asked: Question) -> Floats:
        """Probabilities [rows, classes], or values [rows] as they were learned."""
        encoding, width, found = self.encoding, self.encoding.width, []
        for start in range(0, len(asked.matrix), BATCH_ROWS):
            some = asked.matrix[start : start + BATCH_ROWS]
            sums = encoding.line(some) @ self.coefficients[:width] + self.intercepts
            if len(encoding.starts):
                sums = sums + self.coefficients[width:][encoding.codes(some)].sum(axis=1)
            found.append(sums)
        sums = np.concatenate(found) if found else np.zeros((0, len(self.intercepts)))
        return _answers(sums, self.pipeline)

    def dump(self) -> bytes:
        arrays = dict(vars(self.encoding)) | {"coefficients": self.coefficients, "intercepts": self.intercepts}
        return kept.packed(arrays, {"said": self.said})

    def onnx(self, graph: Graph, pipeline: Pipeline) -> str:
        """The encoding, one product, and one look into a table for each category."""
        width = self.encoding.width
        line, codes = self.encoding.in_graph(graph, pipeline.in_graph(graph))
        sums = graph.add("MatMul", line, graph.constant(self.coefficients[:width], np.float64))
        sums = graph.add("Add", sums, graph.constant(self.intercepts, np.float64))
        if codes:
            each = graph.add("Gather", graph.constant(self.coefficients[width:], np.float64), codes)
            whole = graph.add("ReduceSum", each, graph.constant([1], np.int64), keepdims=0)
            sums = graph.add("Add", sums, whole)
        if pipeline.task == "binary":
            likely = graph.add("Sigmoid", sums)
            sums = graph.add("Concat", graph.add("Sub", graph.constant([[1.0]], np.float64), likely), likely, axis=1)
        elif pipeline.task == "multiclass":
            sums = graph.add("Softmax", sums, axis=1)
        return sums if pipeline.task == "regression" else graph.add("Cast", sums, to=FLOAT)

    def importance(self, pipeline: Pipeline) -> Mapping[str, float]:  # noqa: ARG002
        """Nothing: coefficients of columns that go together say little of each."""
        return {}

    def thresholds(self) -> Mapping[int, list[float]]:
        """None: the answer never jumps."""
        return {}


def _answers(sums: Floats, pipeline: Pipeline) -> Floats:
    if pipeline.task == "regression":
        return sums[:, 0]
    if pipeline.task == "binary":
        likely = scipy.special.expit(sums)
        return np.concatenate([1 - likely, likely], axis=1)
    told: Floats = scipy.special.softmax(sums, axis=1)
    return told


# --- from features to columns -----------------------------------------------------------------------


def _batches(examples: Examples, places: NDArray[np.int64]) -> Iterator[Matrix]:
    yield from examples.rows.matrices(places, BATCH_ROWS)


def encoding_of(examples: Examples, places: NDArray[np.int64], chosen: Params) -> Encoding:
    pipeline = examples.pipeline
    numbers = len(pipeline.names) - len(pipeline.categorical)
    sizes = [len(entry.known) + 2 for entry in pipeline.of("category")]
    total, square, count = np.zeros(numbers), np.zeros(numbers), np.zeros(numbers)
    held = [np.zeros(size, np.int64) for size in sizes]
    random = np.random.default_rng([examples.spec.training.seed, 2])
    some = places if len(places) <= SAMPLE_ROWS else np.sort(random.choice(places, SAMPLE_ROWS, replace=False))
    sample = examples.rows.matrix(some)[:, :numbers].astype(np.float64)
    with np.errstate(all="ignore"):
        shift = np.nan_to_num(np.nanmean(sample, axis=0)) if len(sample) else total  # so that squares keep digits
    for batch in _batches(examples, places):
        wide = batch[:, :numbers].astype(np.float64) - shift
        there = ~np.isnan(wide)
        wide = np.where(there, wide, 0.0)
        total, square, count = total + wide.sum(axis=0), square + (wide**2).sum(axis=0), count + there.sum(axis=0)
        for place, counts in enumerate(held):
            np.add(counts, np.bincount(batch[:, numbers + place].astype(np.int64), minlength=len(counts)), out=counts)
    mean = total / np.maximum(count, 1)
    spread = np.sqrt(np.maximum(square / np.maximum(count, 1) - mean**2, 0.0))
    spread = np.where(spread > LEAST_SPREAD, spread, np.inf)  # a constant says nothing
    return Encoding(
        mean=mean + shift,
        spread=spread,
        flagged=np.flatnonzero(count < len(places)),
        bends=_bends((sample - mean - shift) / spread, chosen.knots),
        starts=np.cumsum([0, *sizes[:-1]]).astype(np.int64)[: len(sizes)],
        column=_levels(held, chosen.levels),
    )


def _bends(scaled: Floats, knots: int) -> Floats:
    """At quantiles, each once; not at the ends, where the line would bend for nobody."""
    found = np.full((scaled.shape[1], knots), np.nan)
    for place in range(scaled.shape[1] if knots else 0):
        own = scaled[~np.isnan(scaled[:, place]), place]
        if not len(own) or own.min() == own.max():
            continue
        where = np.unique(np.quantile(own, np.arange(1, knots + 1) / (knots + 1)))
        where = where[(where > own.min()) & (where < own.max()) & (np.abs(where) < FAR)]
        found[place, : len(where)] = where
    return found


def _levels(held: list[NDArray[np.int64]], most: int) -> NDArray[np.int64]:
    """The one-hot column of each code: the most frequent have their own, the others of a category share one."""
    found, first = [], 0
    for counts in held:
        order = np.argsort(-counts, kind="stable")
        own = order[: most - 1][counts[order[: most - 1]] > 0]
        column = np.full(len(counts), first + len(own), np.int64)
        column[own] = first + np.arange(len(own))
        found.append(column)
        first += len(own) + 1
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def design_of(encoding: Encoding, examples: Examples, places: NDArray[np.int64]) -> Design:
    lines, codes = [], []
    for batch in _batches(examples, places):
        lines.append(encoding.line(batch))
        codes.append(encoding.codes(batch))
    line, categories = np.concatenate(lines), len(encoding.starts)
    if not categories:
        return line, None
    places_ = np.concatenate(codes)
    ends = np.arange(0, places_.size + 1, categories)
    ones = scipy.sparse.csr_matrix((np.ones(places_.size), places_.ravel(), ends), shape=(len(line), encoding.levels))
    return line, ones


# --- learning -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """The mean loss of the rows and its gradient, with the smooth part of the penalty."""

    design: Design
    goal: Floats
    weights: Floats
    """They add up to 1."""
    task: str
    outputs: int
    columns: int
    l1: float
    l2: float
    rows: int

    @classmethod
    def of(cls, design: Design, goal: Floats, weights: Floats, pipeline: Pipeline, chosen: Params) -> "Problem":
        line, ones = design
        return cls(
            design=design,
            goal=goal,
            weights=weights / weights.sum(),
            task=pipeline.task,
            outputs=len(pipeline.classes) if pipeline.task == "multiclass" else 1,
            columns=line.shape[1] + (ones.shape[1] if ones is not None else 0),
            l1=chosen.strength * chosen.l1 / len(goal),
            l2=chosen.strength * (1 - chosen.l1) / len(goal),
            rows=len(goal),
        )

    def parts(self, flat: Floats) -> tuple[Floats, Floats]:
        """Coefficients [columns, outputs] and intercepts [outputs]."""
        whole = flat.reshape(self.columns + 1, self.outputs)
        return whole[:-1], whole[-1]

    def sums(self, flat: Floats) -> Floats:
        coefficients, intercepts = self.parts(flat)
        line, ones = self.design
        told: Floats = line @ coefficients[: line.shape[1]] + intercepts
        return told if ones is None else told + ones @ coefficients[line.shape[1] :]

    def losses(self, sums: Floats) -> tuple[Floats, Floats]:
        """Of each row, and their derivatives by the sums."""
        if self.task == "regression":
            apart = sums[:, 0] - self.goal
            return apart**2 / 2, apart[:, None]
        if self.task == "binary":
            one = sums[:, 0]
            return np.logaddexp(0.0, one) - self.goal * one, (scipy.special.expit(one) - self.goal)[:, None]
        all_ = np.arange(len(sums)), self.goal.astype(np.int64)
        loss = scipy.special.logsumexp(sums, axis=1) - sums[all_]
        slope = scipy.special.softmax(sums, axis=1)
        slope[all_] -= 1.0
        return loss, slope

    def smooth(self, flat: Floats) -> tuple[float, Floats]:
        """The loss without L1, and its gradient."""
        loss, slope = self.losses(self.sums(flat))
        slope = slope * self.weights[:, None]
        line, ones = self.design
        blocks = [line.T @ slope, *([] if ones is None else [ones.T @ slope]), slope.sum(axis=0, keepdims=True)]
        gradient = np.concatenate(blocks)
        coefficients, _ = self.parts(flat)
        gradient[:-1] += self.l2 * coefficients
        return float(self.weights @ loss + self.l2 / 2 * np.sum(coefficients**2)), gradient.ravel()


def _learned(problem: Problem, chosen: Params, context: Context) -> Floats:
    start = np.zeros((problem.columns + 1) * problem.outputs)
    taken = 0

    def count(_: object) -> None:
        nonlocal taken
        taken += 1
        if taken % 50 == 0:
            context.report(0, iterations=taken)

    # `ftol` is of the loss; with L1 this is only where the other search begins
    options = {"maxiter": chosen.iterations, "maxcor": 20, "ftol": 1e-12, "gtol": 1e-7}
    found = scipy.optimize.minimize(problem.smooth, start, jac=True, method="L-BFGS-B", options=options, callback=count)
    flat = np.asarray(found.x, np.float64)
    return sparse(problem, flat, chosen.iterations, count) if problem.l1 else flat


def sparse(problem: Problem, flat: Floats, most: int, count: Callable[[object], None]) -> Floats:
    """FISTA with backtracking, begun again where it overshoots: coefficients become exactly 0."""
    free = len(flat) - problem.outputs  # intercepts are not penalised

    def shrunk(at: Floats, by: float) -> Floats:
        told = np.sign(at) * np.maximum(np.abs(at) - by, 0.0)
        told[free:] = at[free:]
        return told

    ahead, step, speed = flat, 1.0, 1.0
    for _ in range(most):
        value, gradient = problem.smooth(ahead)
        while True:
            new = shrunk(ahead - step * gradient, step * problem.l1)
            moved = new - ahead
            bound = value + gradient @ moved + moved @ moved / (2 * step)
            if step < 1e-12 or problem.smooth(new)[0] <= bound + 1e-12 * abs(bound):  # noqa: PLR2004
                break
            step /= 2
        count(None)
        if np.abs(new - flat).max() < TOLERANCE * max(1.0, np.abs(new).max()):
            return new
        if moved @ (new - flat) < 0:  # it turns round
            speed = 1.0
        faster = (1 + np.sqrt(1 + 4 * speed**2)) / 2
        ahead, flat, speed, step = new + (speed - 1) / faster * (new - flat), new, faster, step * 1.2
    return flat


def _criteria(problem: Problem, flat: Floats) -> dict[str, float]:
    """Akaike's and the Bayesian criterion on the train rows: smaller is better, among models of the same rows."""
    loss, _ = problem.losses(problem.sums(flat))
    free = np.count_nonzero(problem.parts(flat)[0]) + problem.outputs
    if problem.task == "regression":
        variance = max(2 * float(loss.mean()), 1e-300)
        likely, free = -problem.rows / 2 * (np.log(2 * np.pi * variance) + 1), free + 1
    else:
        likely = -float(loss.sum())
    return {"aic": float(2 * free - 2 * likely), "bic": float(np.log(problem.rows) * free - 2 * likely)}
