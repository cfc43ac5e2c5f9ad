"""Trials as jobs do them: what is asked follows from the study alone, and what was found becomes one model."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from activities.compute import Context, export, search, training
from activities.compute.search.asking import Asking
from activities.search import joined
from everloop import contracts, engine
from everloop.contracts import TrialRequest
from everloop.errors import InvalidSpec
from everloop.families import LEARNERS
from everloop.records import Blob, Prepared, Snapshot
from everloop.specs import checked
from everloop.trials import Kept, Plan, Point, Searched, Study, Trial, Trials
from tests.job import FolderJob
from tests.stages import SLOT
from tests.unit.test_validation_folds import Stages, table

BASE = {"model": "m", "task": "binary", "target": "y", "source": {"path": "/t.csv"}}
BLOB = Blob(sha256="0" * 64, size_bytes=1)
SNAPSHOT = Snapshot(manifest=BLOB, rows=1, files=1, size_bytes=1, columns=(), schema_digest="")
PREPARED = Prepared(pipeline=BLOB, train_rows=1, validation_rows=1, test_rows=1, fresh_rows=0, features=())


# --- the spec --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "field", "message"),
    [
        ({"search": {"budget": 60}}, "search.budget", "60 of what? Say 60s, or {trials: 60}"),
        ({"search": {"budget": "soon"}}, "search.budget.time", "'soon' is no time, such as 60s, 10min or 2h"),
        ({"search": {"budget": {}}}, "search.budget", "says neither a time nor a number of trials"),
        ({"search": {"families": ["catboost"]}}, "search.families", "'catboost' is none of forest, lightgbm,"),
        ({"search": {"sampler": "nsga2", "pruner": "asha"}}, "search", "with nsga2 a trial has many goals"),
        ({"search": {"metric": "rmse"}}, "search.metric", "'rmse' is not one of auc, log_loss, accuracy"),
        ({"search": {}, "params": {"max_depth": 3}}, "params", "the search chooses them"),
        ({"search": {}, "trainer": "mine:fit"}, "search", "nothing is known of the parameters of a function of yours"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_its_field(said: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        checked(BASE | said)

    assert refused.value.field == field
    assert message in str(refused.value)


def test_a_search_judges_in_folds_unless_the_spec_says_otherwise_and_a_retraining_has_a_quarter_of_the_budget() -> None:
    spec = checked(BASE | {"search": {"budget": {"time": "2min", "trials": 10}}})

    assert spec.validation.method == "auto"
    assert checked(spec.model_dump(mode="json")) == spec
    assert checked(BASE | {"search": {}, "validation": {"method": "holdout"}}).validation.method == "holdout"
    assert checked(BASE).validation.method == "holdout"
    assert spec.search is not None
    quarter = spec.search.budget.of(again=True)
    assert (quarter.seconds, quarter.trials) == (30, 3)


# --- asking ----------------------------------------------------------------------------------------


def played(asking: Asking, trials: int, *, many: bool = False) -> list[Trial]:
    """A study, one trial after the other, of losses that follow from the number."""
    known: list[Trial] = []
    for number in range(trials):
        asked = asking.ask(number, known)
        drawn = random.Random(number)
        value, steps, state = 0.7 + 0.2 * drawn.random(), [], "complete"
        for step in (1, 2, 3):
            steps.append((step, 1 - value + 0.02 * drawn.random()))
            if not many and asked.worse(*steps[-1]):
                state = "pruned"
                break
        values = (value, drawn.random(), float(drawn.randrange(1000))) if many else (value,)
        told = asked.__dict__ | {"values": values if state == "complete" else (), "intermediates": steps}
        told |= {"number": number, "state": state, "attributes": asked.attributes, "knew": number}
        known.append(Trial.model_validate({name: told[name] for name in told if name in Trial.model_fields}))
    return [Trial.model_validate_json(each.model_dump_json()) for each in known]


@pytest.mark.parametrize(
    ("sampler", "pruner", "trials"),
    [
        ("random", "median", 24),
        ("grid", "none", 24),
        ("tpe", "median", 40),
        ("tpe", "asha", 30),
        ("tpe", "hyperband", 30),
        ("nsga2", "none", 40),
        ("gp", "none", 12),
    ],
)
def test_a_recorded_study_plays_back_to_the_same_suggestions(sampler: str, pruner: str, trials: int) -> None:
    families = ("linear",) if sampler == "gp" else ("lightgbm", "linear")
    said = {"sampler": sampler, "pruner": pruner, "families": families, "budget": {"trials": trials}}
    plan = Plan(spec=checked(BASE | {"search": said}), snapshot=SNAPSHOT, prepared=PREPARED, families=families, seed=3)
    recorded = played(Asking(plan, 3000), trials, many=sampler == "nsga2")

    again = Asking(plan, 3000)
    for trial in recorded:
        asked = again.ask(trial.number, recorded[: trial.knew])
        assert (asked.family, asked.drawn, asked.distributions) == (trial.family, trial.drawn, trial.distributions)
    assert {trial.origin for trial in recorded} == {"portfolio", "sampler"}
    drawn = [str(trial.drawn) for trial in recorded if trial.origin == "sampler"]
    assert len(set(drawn)) == len(drawn)
    if pruner != "none":
        assert any(trial.state == "pruned" for trial in recorded)


def test_a_retraining_begins_with_what_the_champion_was_learned_with() -> None:
    points = (Point(family="linear", parameters={"strength": 7.0}, origin="champion"),)
    spec = checked(BASE | {"search": {"families": ["lightgbm", "linear"]}})
    plan = Plan(spec=spec, snapshot=SNAPSHOT, prepared=PREPARED, families=("lightgbm", "linear"), seed=0, points=points)

    first, second = (Asking(plan, 3000).ask(number, []) for number in (0, 1))

    assert (first.family, first.parameters, first.origin) == ("linear", {"strength": 7.0}, "champion")
    assert (second.family, second.parameters, second.origin) == ("lightgbm", {}, "portfolio")


# --- trials ----------------------------------------------------------------------------------------


def studied(folder: Path, **said: Any) -> tuple[Stages, Plan, Study]:
    more = {"validation": {"method": "folds", "folds": 3, "repeats": 1}, "training": {"rounds": 40}}
    stages = Stages(folder, table(300), trainer="lightgbm", params={}, search=said, **more)
    assert stages.spec.search is not None
    families = stages.spec.search.families_of("lightgbm")
    plan = Plan(spec=stages.spec, snapshot=stages.snapshot, prepared=stages.prepared, families=families, seed=0)
    plan_blob = stages.job.artifacts.put(plan.model_dump_json().encode(), "plan.json")
    return stages, plan, Study(id="one", plan=plan_blob)


def tried(job: Context, study: Study, numbers: range, *, at_once: int = 3) -> tuple[Study, list[Trial]]:
    """Every number, in jobs of so many; the study is told after each."""
    made: list[Trial] = []
    while len(made) < len(numbers):
        next_ = tuple(numbers[len(made) : len(made) + at_once])
        done = search.trials(TrialRequest(study=study, numbers=next_, slot=SLOT), job).trials
        assert [each.number for each in done] == list(next_[: len(done)])
        study = study.model_copy(
            update={"told": study.told + len(done), "blobs": joined(job.artifacts, study.blobs, done)}
        )
        made += done
    return study, made


def test_trials_judge_in_folds_are_pruned_and_the_best_become_one_graph(tmp_path: Path) -> None:
    said = {"budget": {"trials": 20}, "families": ["lightgbm", "linear"], "metric": "log_loss"}
    stages, plan, study = studied(tmp_path, **said)
    study, made = tried(stages.job, study, range(20))

    whole = [each for each in made if each.state == "complete"]
    assert {each.family for each in whole} == {"lightgbm", "linear"}
    assert any(each.state == "pruned" for each in made)
    assert all(len(each.losses) == 3 for each in whole)
    assert all(len(each.intermediates) < 3 for each in made if each.state == "pruned")
    replay = Asking(plan, 160)
    for trial in made:  # as it was asked, in whichever job
        again = replay.ask(trial.number, made[: trial.knew])
        assert (again.family, again.drawn) == (trial.family, trial.drawn)

    best = min(whole, key=lambda each: each.values[0])
    searched = Searched(study=study, trials=20, best=best, sentence="", ended="budget")
    request = contracts.TrainRequest(
        spec=stages.spec, prepared=stages.prepared, snapshot=stages.snapshot, slot=SLOT, searched=searched
    )
    trained = training.train(request, stages.job)

    assert trained.metrics["log_loss"] <= best.values[0] + 1e-9  # an ensemble is at least as good out of fold
    refitted = training.refit(
        contracts.RefitRequest(
            spec=stages.spec, snapshot=stages.snapshot, prepared=stages.prepared, trained=trained, slot=SLOT
        ),
        stages.job,
    )
    exported = export.export(
        contracts.ExportRequest(spec=stages.spec, snapshot=stages.snapshot, refitted=refitted, slot=SLOT), stages.job
    )
    assert exported.parity.mismatches == 0


def test_features_that_a_trial_chose_are_those_of_the_model_of_its_refit_and_of_its_graph(tmp_path: Path) -> None:
    stages, _, study = studied(tmp_path, budget={"trials": 14}, families=["linear"], features=True, pruner="none")
    study, made = tried(stages.job, study, range(14))
    chose = [each for each in made if each.prepared is not None and each.state == "complete"]
    assert chose and len({each.prepared.sha256 for each in chose if each.prepared}) > 1

    searched = Searched(study=study, trials=14, best=chose[0], sentence="", ended="budget")
    spec = stages.spec
    trained = training.train(
        contracts.TrainRequest(
            spec=spec, prepared=stages.prepared, snapshot=stages.snapshot, slot=SLOT, searched=searched
        ),
        stages.job,
    )
    assert trained.features is not None and trained.prepared is not None and trained.features != spec.features
    own = spec.model_copy(update={"features": trained.features})
    refitted = training.refit(
        contracts.RefitRequest(
            spec=own, snapshot=stages.snapshot, prepared=trained.prepared, trained=trained, slot=SLOT
        ),
        stages.job,
    )
    exported = export.export(
        contracts.ExportRequest(spec=spec, snapshot=stages.snapshot, refitted=refitted, slot=SLOT), stages.job
    )
    assert exported.parity.mismatches == 0


def test_with_nsga2_a_trial_says_what_its_graph_takes(tmp_path: Path) -> None:
    stages, _, study = studied(tmp_path, budget={"trials": 3}, sampler="nsga2", families=["lightgbm", "linear"])
    _, made = tried(stages.job, study, range(3))

    for each in made:
        quality, milliseconds, size = each.values
        assert 0.5 < quality <= 1 and milliseconds > 0
        assert (each.milliseconds, each.bytes) == (pytest.approx(milliseconds, abs=1e-3), size)
    assert made[0].bytes > made[1].bytes > 300  # trees take more than a line


def test_a_job_that_knows_others_trials_by_reference_asks_as_if_it_had_been_told_at_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "TOGETHER_SECONDS", 1e9)
    stages, _, study = studied(tmp_path, budget={"trials": 12}, families=["linear"], pruner="none")
    first = search.trials(TrialRequest(study=study, numbers=tuple(range(6)), slot=SLOT, by_reference=True), stages.job)
    assert first.kept is not None
    at_length = [Trial.model_validate_json(line) for line in stages.job.artifacts.get(first.kept).splitlines()]
    kept = Kept(blob=first.kept, numbers=tuple(range(6)), job="run/trials.1")

    def next_two(**known: Any) -> list[Trial]:
        return list(search.trials(TrialRequest(study=study, numbers=(6, 7), slot=SLOT, **known), stages.job).trials)

    by_reference, told = next_two(kept=(kept,)), next_two(recent=tuple(at_length))
    part = joined(stages.job.artifacts, (), at_length[:4])  # some of a job's are in the study already
    study = study.model_copy(update={"told": 4, "blobs": part})
    in_part = next_two(kept=(kept,))

    assert [each.brief() for each in at_length] == list(first.trials)
    assert all(each.knew == 6 + place for place, each in enumerate(by_reference))
    for others in (told, in_part):
        assert [(each.drawn, each.values, each.knew) for each in others] == [
            (each.drawn, each.values, each.knew) for each in by_reference
        ]
    assert len(Trials(trials=first.trials * 6).model_dump_json()) < 48_000  # what a job may tell at most


def test_a_family_that_fails_is_a_failed_trial_and_no_failed_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from activities.compute.trainers import linear

    def fit(*_: Any) -> Any:
        raise ZeroDivisionError("no rows are left")

    monkeypatch.setattr(linear, "fit", fit)
    stages, _, study = studied(tmp_path, budget={"trials": 2}, families=["linear", "lightgbm"])

    _, made = tried(stages.job, study, range(2))

    assert (made[0].state, made[0].error) == ("failed", "ZeroDivisionError: no rows are left")
    assert made[1].state == "complete"


def test_a_trial_with_a_figure_that_no_json_carries_is_a_failed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "score", lambda *_: {"auc": 0.7, "log_loss": float("inf")})
    stages, _, study = studied(tmp_path, budget={"trials": 1}, families=["linear"], metric="auc")

    _, (made,) = tried(stages.job, study, range(1))

    assert (made.state, made.error) == ("failed", "it answers what is no number, or too large for one")
    assert Trial.model_validate_json(made.model_dump_json()) == made


def test_a_trial_whose_time_is_over_is_cut_but_for_the_first(tmp_path: Path) -> None:
    stages, _, study = studied(tmp_path, budget="60s", families=["lightgbm"])
    request = TrialRequest(study=study, numbers=(0, 1, 2), slot=SLOT, seconds=0.0)
    (first,) = search.trials(request, stages.job).trials
    late = TrialRequest(study=study, numbers=(1,), recent=(first,), slot=SLOT, seconds=0.0)
    (second,) = search.trials(late, stages.job).trials

    assert (first.state, second.state) == ("complete", "cut")
    assert second.left is not None and second.left <= 0


def test_a_trial_that_was_ended_goes_on_after_the_folds_that_it_had_judged(tmp_path: Path) -> None:
    stages, _, study = studied(tmp_path, budget={"trials": 1}, families=["linear"])
    request = TrialRequest(study=study, numbers=(0,), slot=SLOT)
    (whole,) = search.trials(request, stages.job).trials
    (tmp_path / "again").mkdir()
    job = FolderJob(tmp_path / "again", due=True)
    job.artifacts = stages.job.artifacts
    search.trials(request, job)
    job.kept, before = job.kept[:1], len(job.kept)
    (again,) = search.trials(request, job).trials

    assert before >= 2 and len(job.kept) < 1 + before  # what the first fold has left is not learned again
    assert (again.values, again.losses) == (whole.values, whole.losses)


def test_what_trials_are_forked_from_has_loaded_their_families_and_no_thread_of_theirs() -> None:
    """No fit begins there: OpenMP's threads do not survive a fork."""
    names = ["activities.compute.search.asking"]
    names += [f"activities.compute.trainers.{name}" for name in LEARNERS if name != "torch"]
    code = "import sys, pathlib; from activities.jobs import warm; import activities.compute.data; "
    code += "threads = lambda: len(list(pathlib.Path('/proc/self/task').iterdir())); before = threads(); "
    code += f"[warm._load(name) for name in {names}]; "
    code += "print(threads() - before, 'optuna' in sys.modules)"
    environment = engine.environment() | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["0", "True"]
