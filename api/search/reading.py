"""A search and its trials as the tables have them."""

from collections import Counter
from typing import Any

from sqlmodel import Session, col, func, select

from api.search import importance as importances
from api.search.answers import Importance, Rung, SearchSummary, SearchView, TrialView, Wanted
from everloop.errors import NotFound
from everloop.specs import HIGHER_IS_BETTER
from everloop.store import LifecycleRow, StudyRow, TrialRow

LEADERS = 5
MOST_WEIGHED = 2000
"""Trials that importance is told from: the newest."""
OPEN = frozenset({"running", "paused"})


def study_of(session: Session, lifecycle: str) -> StudyRow | None:
    """The latest search of a lifecycle: one that was begun again is another."""
    query = select(StudyRow).where(StudyRow.lifecycle == lifecycle)
    return session.exec(query.order_by(col(StudyRow.started_at).desc()).limit(1)).first()


def study_row(session: Session, lifecycle: str) -> StudyRow:
    """Raises `NotFound` where there is none."""
    found = study_of(session, lifecycle)
    if found is None:
        hint = "its spec has no `search:`, or it has not come so far; `everloop show` says where it is"
        raise NotFound(f"{lifecycle[:200]} has no search", field="id", hint=hint)
    return found


def summary(session: Session, row: LifecycleRow) -> SearchSummary | None:
    """The lifecycle's search in a few words, or None."""
    study = study_of(session, row.id)
    return None if study is None else SearchSummary(**_summed(session, row, study))


def _summed(session: Session, row: LifecycleRow, study: StudyRow) -> dict[str, Any]:
    leaders = trials(session, study, Wanted(limit=LEADERS))
    return {
        "state": study.state,
        "sentence": study.sentence,
        "metric": study.metric,
        "higher_is_better": rising(study),
        "trials": study.told,
        "leaders": leaders,
        "can_take_best": study.state == "running" and row.status == "running" and any(each.rank for each in leaders),
    }


def view(session: Session, row: LifecycleRow) -> SearchView:
    """All there is to say of a lifecycle's latest search. Raises `NotFound`."""
    study = study_row(session, row.id)
    counted = session.exec(
        select(TrialRow.family, TrialRow.state, func.count())
        .where(TrialRow.study == study.id)
        .group_by(TrialRow.family, TrialRow.state)
    ).all()
    states, families = Counter[str](), Counter[str](dict.fromkeys(study.families, 0))
    for family, state, count in counted:
        states[state] += count
        if family:  # else it was ended before it was asked for
            families[family] += count
    return SearchView(
        **_summed(session, row, study),
        lifecycle=row.id,
        study=study.id,
        sampler=study.sampler,
        pruner=study.pruner,
        budget_seconds=study.seconds,
        budget_trials=study.trials,
        spent_seconds=study.spent_seconds,
        started_at=study.started_at,
        updated_at=study.updated_at,
        states=dict(states),
        families=dict(families),
        importance=importance(session, study),
    )


def rising(study: StudyRow) -> bool:
    """Is more of its metric better?"""
    return study.metric in HIGHER_IS_BETTER


def trials(session: Session, study: StudyRow, wanted: Wanted) -> list[TrialView]:
    """Its trials that have ended. The best come first with `best`, and those without a value last."""
    query = select(TrialRow).where(TrialRow.study == study.id)
    query = query.where(TrialRow.family == wanted.family) if wanted.family else query
    query = query.where(TrialRow.state == wanted.state) if wanted.state else query
    value, number = col(TrialRow.value), col(TrialRow.number)
    orders = {
        "best": (value.is_(None), value.desc() if rising(study) else value, number),
        "newest": (number.desc(),),
        "number": (number,),
        "seconds": (col(TrialRow.seconds).desc(), number),
    }
    rows = session.exec(query.order_by(*orders[wanted.order]).limit(wanted.limit)).all()
    ranks = ranked(session, study)
    return [_trial(row, ranks.get(row.number)) for row in rows]


def ranked(session: Session, study: StudyRow) -> dict[int, int]:
    """The places of its complete trials, by number."""
    value = col(TrialRow.value)
    query = select(TrialRow.number).where(TrialRow.study == study.id, TrialRow.state == "complete", value.is_not(None))
    ordered = session.exec(query.order_by(value.desc() if rising(study) else value, col(TrialRow.number)))
    return {number: place for place, number in enumerate(ordered, 1)}


def _trial(row: TrialRow, rank: int | None) -> TrialView:
    told = row.record
    return TrialView(
        number=row.number,
        state=row.state,
        family=row.family,
        parameters=told.get("parameters") or {},
        origin=told.get("origin") or "",
        value=row.value,
        rank=rank,
        losses=told.get("losses") or [],
        rungs=[Rung(step=step, loss=loss) for step, loss in told.get("intermediates") or []],
        metrics=told.get("metrics") or {},
        ended_at=row.at,
        seconds=row.seconds,
        bytes=told.get("bytes") or 0,
        milliseconds=told.get("milliseconds") or 0.0,
        device=told.get("device") or "",
        error=told.get("error") or "",
    )


def importance(session: Session, study: StudyRow) -> list[Importance]:
    """Of the choice of the family, then of each family's parameters; the family with most trials first."""
    query = select(TrialRow.family, TrialRow.value, col(TrialRow.record)["parameters"]).where(
        TrialRow.study == study.id, TrialRow.state == "complete", col(TrialRow.value).is_not(None)
    )
    found = session.exec(query.order_by(col(TrialRow.number).desc()).limit(MOST_WEIGHED)).all()
    sign = -1 if rising(study) else 1
    points = [(family, parameters or {}, sign * value) for family, value, parameters in found if value is not None]
    by_family = Counter(family for family, _, _ in points)
    told = [("", importances.importance([({"family": family}, loss) for family, _, loss in points]))]
    for family, _ in by_family.most_common():
        mine = [(parameters, loss) for name, parameters, loss in points if name == family]
        told.append((family, importances.importance(mine)))
    return [_importance(family, each) for family, listed in told for each in listed]


def _importance(family: str, told: importances.Told) -> Importance:
    return Importance(family=family, parameter=told.name, share=told.share, trials=told.trials, best=told.best)
