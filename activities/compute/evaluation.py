# ruff: noqa: T201  # what a job prints is its log
"""How good is the candidate, and is it better than the champion on rows that neither has seen?"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activities.compute import Job
from activities.compute.features import FRESH_ROWS, TEST, Floats, Pipeline, prepared_rows
from activities.compute.inference import Columns, Model
from activities.compute.resampling import sureness
from activities.compute.rows import opened
from everloop.contracts import EvaluateRequest
from everloop.errors import naming
from everloop.records import Champion, ColumnScore, Comparison, Evaluation, Field, Signature
from everloop.specs import HIGHER_IS_BETTER, METRICS, Task

SMALLEST = 1e-15
"""Probabilities are kept this far from 0 and 1 before their logarithm is taken."""
MOST_IMPORTANT = 30
MOST_SHOWN, SHOWN = 10, 200
"""Of them, on pages, and letters of their names: they travel with the result through Temporal."""
SAMPLED = 5_000
"""Test rows whose labels and answers are kept in the report."""
CHAMPION_ROWS = 250_000
"""Rows that the champion is asked about at once."""


def evaluate(request: EvaluateRequest, job: Job) -> Evaluation:
    """Metrics on the test part, and the comparison with the champion on its fresh rows."""
    from activities.compute.finish import calibrated, mean_cost
    from activities.compute.importance import permuted
    from activities.compute.trainers import answers_of_rows, raw_columns, trainer

    spec, prepared = request.spec, request.prepared
    pipeline = Pipeline.read(job.artifacts, prepared.pipeline)
    fitted = trainer(request.trained.family).load(job.artifacts.get(request.trained.model), pipeline)
    with prepared_rows(job.artifacts, prepared) as stored, raw_columns(job.artifacts, request.snapshot) as raw:
        test = np.flatnonzero(stored.part == TEST)
        values, fresh, rows = stored.y[test], stored.fresh[test], stored.rows[test]
        answers = answers_of_rows(fitted, pipeline, stored, test, raw)
        worth, how = fitted.importance(pipeline), "native"
        if not worth and len(test):
            columns = raw if spec.own_trainer and spec.inputs == "raw" else None
            worth, how = permuted(fitted, pipeline, stored, test, raw=columns, seed=spec.training.seed), "permutation"
    answers = calibrated(request.trained.finish, answers)
    importance = _importance(worth)
    metrics = score(pipeline, values, answers)
    comparison = _compare(request, job, pipeline, values[fresh], answers[fresh], rows[fresh])
    report = {
        "sample": _sample(pipeline, values, answers, spec.training.seed),
        "task": spec.task,
        "rows": len(values),
        "metrics": metrics,
        "comparison": comparison.model_dump(mode="json"),
        "importance": [{"feature": name, "share": share} for name, share in importance],
        "importance_is": how,
        "said": dict(getattr(fitted, "said", {})),
        "not_used": {column.name: column.reason for column in pipeline.dropped},
        "added": {entry.name: f"{entry.rule}: {entry.reason}" for entry in pipeline.added},
        "selection": asdict(pipeline.selected) if pipeline.selected else None,
    } | _figures(pipeline, values, answers)
    if spec.decision and request.trained.finish and (threshold := request.trained.finish.threshold) is not None:
        costs = {
            name: mean_cost(spec.decision, values == 1, answers[:, 1], at)
            for name, at in (("cost", threshold), ("cost_at_half", 0.5))
        }
        report["decision"] = {"threshold": threshold} | costs
        print(f"at the threshold {threshold:.4f} errors cost {costs['cost']:.4f} a row")
    print(f"test, {len(values):,} rows: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    print(comparison.reason)
    return Evaluation(
        metrics=metrics,
        rows=len(values),
        comparison=comparison,
        importance={name[:SHOWN]: share for name, share in importance[:MOST_SHOWN]},
        importance_is=how,
        selected_by=pipeline.selected.method if pipeline.selected else "",
        selection=tuple(
            ColumnScore(column=each.column[:SHOWN], score=each.score, kept=each.kept)
            for each in (pipeline.selected.scores[:MOST_IMPORTANT] if pipeline.selected else ())
        ),
        report=job.artifacts.put(json.dumps(report, indent=1).encode(), "evaluation.json"),
    )


def _sample(pipeline: Pipeline, values: Floats, answers: Floats, seed: int) -> dict[str, list[Any]]:
    """Some of the labels, and of the answers on rows that were not learned: what a monitor compares later ones with."""
    rows = np.arange(len(values))
    if len(rows) > SAMPLED:
        rows = np.sort(np.random.default_rng(seed).choice(rows, SAMPLED, replace=False))
    values, answers = values[rows], answers[rows]
    if pipeline.task == "regression":
        return {"answers": answers.tolist(), "labels": values.tolist()}
    labels = [pipeline.classes[place] for place in values.astype(np.int64)]
    if pipeline.task == "binary":
        return {"answers": answers[:, 1].tolist(), "labels": labels}
    return {"answers": [pipeline.classes[place] for place in answers.argmax(axis=1)], "labels": labels}


def _importance(worth: Mapping[str, float]) -> list[tuple[str, float]]:
    """The features that are worth most, as shares."""
    total = sum(worth.values()) or 1.0
    best = sorted(worth.items(), key=lambda each: -each[1])[:MOST_IMPORTANT]
    return [(name, value / total) for name, value in best if value]


def _figures(pipeline: Pipeline, values: Floats, answers: Floats) -> dict[str, object]:
    if pipeline.task == "regression":
        shares = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
        return {"residuals": dict(zip(map(str, shares), np.quantile(answers - values, shares).tolist(), strict=True))}
    true, told = values.astype(np.int64), answers.argmax(axis=1)
    return {
        "classes": {
            label: {
                "rows": int((true == place).sum()),
                "answered": int((told == place).sum()),
                "right": int(((true == place) & (told == place)).sum()),
            }
            for place, label in enumerate(pipeline.classes)
        }
    }


# --- metrics ------------------------------------------------------------------------------------


def score(pipeline: Pipeline, values: Floats, answers: Floats) -> dict[str, float]:
    """The task's metrics that can be computed on these rows: no AUC where only one class is present."""
    return scores(pipeline.task, values, answers)  # type: ignore[arg-type]


def scores(task: Task, values: Floats, answers: Floats) -> dict[str, float]:
    """*values*: class index or number; *answers*: probabilities [rows, classes] or numbers."""
    if not len(values):
        return {}
    found = _regression(values, answers) if task == "regression" else _classification(values.astype(np.int64), answers)
    return {name: found[name] for name in METRICS[task] if name in found}


def _regression(values: Floats, answers: Floats) -> dict[str, float]:
    errors = answers - values
    found = {"rmse": float(np.sqrt(np.mean(errors**2))), "mae": float(np.mean(np.abs(errors)))}
    spread = float(np.sum((values - values.mean()) ** 2))
    return found | ({"r2": 1 - float(np.sum(errors**2)) / spread} if spread else {})


def _classification(classes: NDArray[np.int64], answers: Floats) -> dict[str, float]:
    of_truth = answers[np.arange(len(classes)), classes]
    found = {
        "log_loss": float(-np.mean(np.log(np.clip(of_truth, SMALLEST, 1.0)))),
        "accuracy": float(np.mean(answers.argmax(axis=1) == classes)),
    }
    columns = [1] if answers.shape[1] == 2 else range(answers.shape[1])  # noqa: PLR2004
    areas = [area for place in columns if (area := auc(classes == place, answers[:, place])) is not None]
    return found | ({"auc": float(np.mean(areas))} if areas else {})


def auc(positive: NDArray[np.bool_], answers: Floats) -> float | None:
    """Area under the ROC curve, ties counted half; None where only one class is present."""
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return None
    _, places, counts = np.unique(answers, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((ranks[places][positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


# --- champion against challenger ----------------------------------------------------------------


def _compare(  # noqa: PLR0917
    request: EvaluateRequest, job: Job, pipeline: Pipeline, values: Floats, answers: Floats, rows: NDArray[np.int64]
) -> Comparison:
    champion, spec = request.champion, request.spec
    if champion is None:
        return Comparison(verdict="no_champion", reason="There is no champion to compare with.")
    signature = Signature.model_validate_json(job.artifacts.get(champion.signature))
    if (signature.task, signature.target) != (spec.task, spec.target):
        was = f"Version {champion.version} answers another question ({signature.task} of {signature.target!r})"
        reason = f"{was}: nothing to compare."
        return Comparison(verdict="no_champion", reason=reason, champion_version=champion.version)
    if request.prepared.unmatched:
        columns = ", ".join(map(repr, request.prepared.unmatched))
        reason = (
            f"The data has {columns} otherwise than version {champion.version} read it, so nobody can tell which rows"
            " that version has learned from: the two were not compared."
        )
        return Comparison(verdict="no_fresh_rows", reason=reason, champion_version=champion.version)
    if len(rows) < FRESH_ROWS:
        reason = (
            f"Only {len(rows)} test rows are new to version {champion.version}; {FRESH_ROWS} are needed to compare."
        )
        return Comparison(verdict="no_fresh_rows", reason=reason, champion_version=champion.version, rows=len(rows))
    told = _champion_answers(request, job, champion, signature, rows)
    own, theirs = _same_classes(pipeline, signature, answers, told)
    return _verdict(request, champion, values, own, theirs)


def _champion_answers(
    request: EvaluateRequest, job: Job, champion: Champion, signature: Signature, rows: NDArray[np.int64]
) -> Floats:
    model, told = Model(job.artifacts.get(champion.model), signature), []
    with opened(job.artifacts, request.snapshot) as table:
        there = {column.name for column in table.columns}
        wanted = [entry.name for entry in signature.fields if entry.name in there]
        for start in range(0, len(rows), CHAMPION_ROWS):
            some = rows[start : start + CHAMPION_ROWS]
            raw = table.arrays(wanted, some)
            columns: Columns = {}
            for entry in signature.fields:
                with naming(column=entry.name):
                    columns[entry.name] = _fitting(entry, raw.get(entry.name), some, say=not start)
            told.append(model.predict(columns).values)
    return np.concatenate(told)


def _fitting(
    entry: Field, values: NDArray[np.generic] | None, rows: NDArray[np.int64], *, say: bool
) -> NDArray[np.generic]:
    """The column as the champion takes it; missing where the data has it no more, or as another kind."""
    text = entry.kind == "category"
    if values is not None and (values.dtype == object) == text:
        return values
    if say:
        print(f"the champion's column {entry.name!r} is no longer there as {entry.kind}: missing in its rows")
    return np.full(len(rows), "", object) if text else np.full(len(rows), np.nan)


def _same_classes(pipeline: Pipeline, signature: Signature, own: Floats, theirs: Floats) -> tuple[Floats, Floats]:
    """Both models' answers over the candidate's classes; a class that the champion does not know has probability 0."""
    if pipeline.task == "regression":
        return own, theirs
    known = {label: place for place, label in enumerate(signature.classes)}
    columns = [theirs[:, known[label]] if label in known else np.zeros(len(theirs)) for label in pipeline.classes]
    return own, np.stack(columns, axis=1)


def _verdict(request: EvaluateRequest, champion: Champion, values: Floats, answers: Floats, told: Floats) -> Comparison:
    """Better is a challenger whose metric is, and by a paired test as surely as is asked for."""
    spec, rows = request.spec, len(values)
    own, theirs = (scores(spec.task, values, each) for each in (answers, told))
    metric, note = spec.objective, ""
    if metric not in own:
        metric = "rmse" if spec.task == "regression" else "log_loss"
        note = f" ({spec.objective} needs more than one class or value in these rows)"
    challenger, best = own[metric], theirs[metric]
    gain = challenger - best if metric in HIGHER_IS_BETTER else best - challenger
    sure = sureness(spec.task, metric, values, answers, told, spec.training.seed)
    better = gain > 0 and sure >= request.certainty
    says = f"better by {gain:.4g}" if gain > 0 else ("equal" if gain == 0 else f"worse by {-gain:.4g}")
    again = f"in {sure:.0%} of the samples drawn again from these rows it is the better one"
    if gain > 0 and not better:
        again += f", and {request.certainty:.0%} are asked for"
    reason = (
        f"On {rows:,} rows that neither has seen, the challenger's {metric} is {challenger:.4g}"
        f" and version {champion.version}'s is {best:.4g}: {says}{note}; {again}."
    )
    return Comparison(
        verdict="better" if better else "not_better",
        reason=reason,
        sure=sure,
        metric=metric,
        champion=best,
        challenger=challenger,
        champion_version=champion.version,
        rows=rows,
    )
