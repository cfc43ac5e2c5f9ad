"""Evidently's word on each column."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from activities.compute import GATHERED_BY_EVIDENTLY, Job, on_demand
from activities.compute.drift.methods import (
    DISTANCE,
    MISSING,
    NAMES,
    Pair,
    is_small,
    method_and_threshold,
    register_contingency,
)
from everloop.errors import naming
from everloop.records import ColumnDrift

OUTER = 0.005
"""Share of the reference on each side beyond which a number counts as the quantile, where a distance decides."""


def word(name: str, numeric: bool, then: NDArray[Any], now: NDArray[Any]) -> ColumnDrift:
    """Evidently's word on one pair of samples."""
    return judge([Pair(name, numeric, then, now)])[0][0]


def judge(pairs: Sequence[Pair], job: Job | None = None) -> tuple[list[ColumnDrift], list[Any]]:
    """Evidently's word on each pair, and its JSON. A side without any value is told without Evidently.

    Of a number with missing values the share of the missing is asked too: the other methods pass them over.
    """
    found: dict[str, ColumnDrift] = {}
    asked: list[Pair] = []
    for pair in pairs:
        told = without_values(pair)
        if told is None:
            asked.append(_cut(pair))
        else:
            found[pair.name] = told
    shares = {pair.name: Pair(pair.name, False, *_filled(pair)) for pair in asked if _has_missing(pair)}
    evidence = _ask([*asked, *shares.values()], job) if asked or shares else []
    for pair, (told, _) in zip(asked, evidence[: len(asked)], strict=True):
        found[pair.name] = told
    for name, (told, _) in zip(shares, evidence[len(asked) :], strict=True):
        if told.drifted and not found[name].drifted:
            found[name] = told.model_copy(update={"method": f"share of missing values, {told.method}"})
    return [found[pair.name] for pair in pairs], [metric for _, metric in evidence]


def _has_missing(pair: Pair) -> bool:
    return pair.numeric and not all(np.isfinite(side).all() for side in (pair.reference, pair.current))


def _filled(pair: Pair) -> list[NDArray[Any]]:
    return [np.where(np.isfinite(side), "there", MISSING).astype(object) for side in (pair.reference, pair.current)]


def _cut(pair: Pair) -> Pair:
    """Numbers beyond the reference's outer quantiles count as these.

    A distance in units of its standard deviation would else be blind where some 999999999 stand for "unknown", and
    alarmed by a single one.
    """
    if not pair.numeric or is_small(pair):
        return pair
    low, high = np.quantile(pair.reference[np.isfinite(pair.reference)], (OUTER, 1 - OUTER))
    if low == high:
        return pair
    return Pair(pair.name, True, np.clip(pair.reference, low, high), np.clip(pair.current, low, high))


def without_values(pair: Pair) -> ColumnDrift | None:
    if not pair.numeric:
        return None
    empty = [not np.isfinite(side).any() for side in (pair.reference, pair.current)]
    if not any(empty):
        return None
    alone = all(empty)
    method = "no values on either side" if alone else "no values on one side"
    return ColumnDrift(
        column=pair.name, method=method, score=0.0 if alone else 1.0, threshold=DISTANCE, drifted=not alone
    )


def _ask(pairs: Sequence[Pair], job: Job | None) -> list[tuple[ColumnDrift, dict[str, Any]]]:
    if job is not None:
        job.report(1, columns=len(pairs))
    with _undrawn():
        told = _told(pairs)
    return [(_word(pair, *of), of[0] | {"column": pair.name}) for pair, of in zip(pairs, told, strict=True)]


def _word(pair: Pair, metric: dict[str, Any], test: dict[str, Any]) -> ColumnDrift:
    config = metric["config"]
    return ColumnDrift(
        column=pair.name,
        method=NAMES.get(config["method"], str(config["method"])),
        score=float(metric["value"]),
        threshold=float(config["threshold"]),
        drifted=test["status"] == "FAIL",
    )


def _told(pairs: Sequence[Pair]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Metric and test of each pair.

    Evidently fails as a whole on numbers that a float cannot cut into bins (all near 1e18, say): then each column
    is asked alone, and such a one in standard units, which no method of Evidently's minds.
    """
    try:
        return metrics(pairs)
    except Exception as error:  # Evidently's: asked alone, the column that it stumbles over is known
        if len(pairs) > 1:
            return [told for pair in pairs for told in _told([pair])]
        with naming(column=pairs[0].name):
            if not isinstance(error, ValueError):
                raise
            return metrics([_standardized(pairs[0])])


def metrics(pairs: Sequence[Pair]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    told = json.loads(report(pairs, [f"c{place}" for place in range(len(pairs))]).json())
    return list(zip(told["metrics"], told["tests"], strict=True))


def _standardized(pair: Pair) -> Pair:
    if not pair.numeric:
        return pair
    filled = pair.reference[np.isfinite(pair.reference)]
    middle, width = np.median(filled), np.std(filled) or 1.0
    sides = [np.clip((side - middle) / width, -1e6, 1e6) for side in (pair.reference, pair.current)]
    return Pair(pair.name, numeric=True, reference=sides[0], current=sides[1])


@contextmanager
def _undrawn() -> Iterator[None]:
    """In the block Evidently draws no figures and gathers nothing for them: most of a check's time, for nobody.

    It is given the one column that it compares, too: it copies the whole table for each.
    """
    with on_demand(*GATHERED_BY_EVIDENTLY):
        from evidently.core.datasets import PandasDataset
        from evidently.legacy.calculations import data_drift
        from evidently.legacy.metric_results import Distribution
        from evidently.metrics import column_statistics

    compare, nothing = column_statistics.get_one_column_drift, Distribution(x=[], y=[])

    def compare_one(*, current_data: Any, reference_data: Any, column_name: str, **more: Any) -> Any:  # noqa: ANN401
        sides = {"current_data": current_data[[column_name]], "reference_data": reference_data[[column_name]]}
        return compare(**sides, column_name=column_name, **more)

    with ExitStack() as stack:
        put = stack.enter_context
        put(_instead(column_statistics.ValueDriftCalculation, "_render", lambda *_: []))
        put(_instead(column_statistics, "get_one_column_drift", compare_one))
        put(_instead(PandasDataset, "_collect_stats", lambda *_: None))
        put(_instead(data_drift, "prepare_df_for_time_index_plot", lambda *_: (pd.DataFrame(), None)))
        put(_instead(data_drift, "get_distribution_for_column", lambda **_: (nothing, nothing)))
        yield


@contextmanager
def _instead(owner: Any, name: str, value: Any) -> Iterator[None]:  # noqa: ANN401  # a module or class of Evidently's
    was = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, was)


def report(pairs: Sequence[Pair], names: Sequence[str]) -> Any:  # noqa: ANN401  # Evidently's Snapshot
    """Run `ValueDrift` on each pair under a safe name: a column's own name may mean something to Evidently."""
    with on_demand(*GATHERED_BY_EVIDENTLY):
        from evidently import DataDefinition, Dataset, Report
        from evidently.metrics import ValueDrift

    register_contingency()
    numeric = [name for name, pair in zip(names, pairs, strict=True) if pair.numeric]
    categories = [name for name, pair in zip(names, pairs, strict=True) if not pair.numeric]
    definition = DataDefinition(numerical_columns=numeric, categorical_columns=categories)
    sides = [Dataset.from_pandas(frame, data_definition=definition) for frame in _frames(names, pairs)]
    methods = [method_and_threshold(pair) for pair in pairs]
    asked = [
        ValueDrift(column=name, method=method, threshold=threshold)
        for name, (method, threshold) in zip(names, methods, strict=True)
    ]
    return Report(asked, include_tests=True).run(sides[0], sides[1])


def _frames(names: Sequence[str], pairs: Sequence[Pair]) -> list[pd.DataFrame]:
    """Now and then. Texts as categories: Evidently looks at each value again and again, and so it looks at a number."""
    now: dict[str, Any] = {}
    then: dict[str, Any] = {}
    for name, pair in zip(names, pairs, strict=True):
        if pair.numeric:
            now[name], then[name] = pair.current, pair.reference
            continue
        codes, texts = pd.factorize(np.concatenate([pair.current, pair.reference]), sort=True)
        made = pd.Categorical.from_codes(codes, categories=texts)
        now[name], then[name] = made[: len(pair.current)], made[len(pair.current) :]
    return [pd.DataFrame(now), pd.DataFrame(then)]
