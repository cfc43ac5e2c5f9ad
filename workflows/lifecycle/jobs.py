"""The stages that are jobs: from the source to the graph, each with the sentence that it leaves."""

from typing import TypeVar

from temporalio import workflow

from everloop.contracts import (
    DataActivities,
    EvaluateRequest,
    EvaluationActivities,
    ExportActivities,
    ExportRequest,
    FeaturesActivities,
    LifecycleRequest,
    PrepareRequest,
    RefitRequest,
    SearchRequest,
    SnapshotRequest,
    TrainingActivities,
    TrainRequest,
    ValidateRequest,
)
from everloop.records import Champion, Evaluation, Exported, Prepared, Record, Refitted, Snapshot, Trained, Validation
from everloop.specs import LifecycleSpec
from everloop.steps import STEP, count
from workflows.lifecycle.search import Searching
from workflows.stage import Stages

R = TypeVar("R", bound=Record)


class JobStages:
    """What each of them is asked, with the results of those before it."""

    def __init__(self, request: LifecycleRequest, stages: Stages, search: Searching) -> None:
        self._request = request
        self._spec = request.spec
        self._stages = stages
        self._search = search

    async def snapshot(self) -> Snapshot:
        return there(
            await self._stages.run(
                "snapshot",
                DataActivities.snapshot,
                SnapshotRequest(spec=self._spec),
                lambda made: f"{made.rows:,} rows; files: {made.files}; {made.size_bytes:,} bytes",
            )
        )

    async def validate(self, snapshot: Snapshot) -> Validation | None:
        return await self._stages.run(
            "validate",
            DataActivities.validate,
            ValidateRequest(spec=self._spec, snapshot=snapshot),
            _checks,
        )

    async def prepare(self, snapshot: Snapshot, champion: Champion | None) -> Prepared:
        since = f", of rows since {self._spec.since:%Y-%m-%d %H:%M} UTC alone" if self._spec.since else ""
        return there(
            await self._stages.run(
                "prepare",
                FeaturesActivities.prepare,
                PrepareRequest(spec=self._spec, snapshot=snapshot, champion=champion),
                lambda made: (
                    f"{made.feature_count} features; {made.train_rows:,} train, {made.validation_rows:,} validation, "
                    f"{made.test_rows:,} test rows"
                    + since
                    + (f"; {made.selection}" if made.selection else "")
                    + _together(made)
                ),
            )
        )

    async def train(self, snapshot: Snapshot, prepared: Prepared, champion: Champion | None) -> Trained:
        async def searched(request: TrainRequest) -> TrainRequest:
            asked = SearchRequest(
                lifecycle=workflow.info().workflow_id,
                spec=self._spec,
                snapshot=snapshot,
                prepared=prepared,
                champion=champion,
                again=champion is not None and self._request.trigger != "manual",
            )
            return request.model_copy(update={"searched": await self._search.found(asked)})

        return there(
            await self._stages.run(
                "train",
                TrainingActivities.train,
                TrainRequest(spec=self._spec, prepared=prepared, snapshot=snapshot, code=snapshot.code),
                self._learned,
                searched if self._spec.search is not None else None,
            )
        )

    def _learned(self, made: Trained) -> str:
        learned = count(made.iterations, _unit(made)) + _again(made)
        if self._search.searched is None:
            return learned
        members = made.parameters.get("members", ()) if made.family == "ensemble" else ()
        chosen = f"an ensemble of {len(members)}" if members else f"{made.family}, {learned}"
        return f"{chosen}; {self._search.searched.sentence}"

    async def evaluate(
        self, snapshot: Snapshot, prepared: Prepared, trained: Trained, champion: Champion | None
    ) -> Evaluation:
        return there(
            await self._stages.run(
                "evaluate",
                EvaluationActivities.evaluate,
                EvaluateRequest(
                    spec=self._spec,
                    snapshot=snapshot,
                    prepared=prepared,
                    trained=trained,
                    champion=champion,
                    certainty=0.0 if self._request.trigger == "manual" else self._spec.retrain.certainty,
                ),
                lambda made: made.comparison.reason,
            )
        )

    async def refit(self, snapshot: Snapshot, prepared: Prepared, trained: Trained) -> Refitted:
        spec = _with_features(self._spec, trained)
        return there(
            await self._stages.run(
                "refit",
                TrainingActivities.refit,
                RefitRequest(spec=spec, snapshot=snapshot, prepared=prepared, trained=trained, code=trained.code),
                lambda made: f"fitted again on all {made.rows:,} labelled rows" + _again(made),
            )
        )

    async def export(self, snapshot: Snapshot, refitted: Refitted) -> Exported:
        return there(
            await self._stages.run(
                "export",
                ExportActivities.export,
                ExportRequest(spec=self._spec, snapshot=snapshot, refitted=refitted),
                lambda made: (
                    f"ONNX {made.model.sha256[:12]}, equal to the trained model on "
                    f"{made.parity.rows + made.parity.edge_rows:,} rows "
                    f"(max difference {made.parity.max_difference:.1e})"
                    + (
                        f"; {made.model.size_bytes / 2**20:.2f} MiB, one row takes {made.latency_ms:.3f} ms"
                        if made.latency_ms is not None
                        else ""
                    )
                ),
            )
        )


def there(result: R | None) -> R:
    assert result is not None  # noqa: S101  # only skippable stages can be missing, see specs.SKIPPABLE
    return result


def _checks(made: Validation) -> str:
    warnings = [check for check in made.checks if check.level == "warning"]
    if not warnings:
        return f"{len(made.checks)} checks passed"
    said = "; ".join(check.message for check in warnings[:3])
    return f"{len(made.checks)} checks, {len(warnings)} warning{'s' if len(warnings) > 1 else ''}: {said}"


def _unit(made: Trained | Refitted) -> str:
    return made.unit or {"lightgbm": "round", "torch": "epoch"}.get(made.family, STEP)


def _again(made: Trained | Refitted) -> str:
    """What a training kept and did again when its job was ended, and where it was."""
    resumed = made.ran.resumed if made.ran else None
    return _together(made) + (f"; {resumed.sentence(_unit(made))}" if resumed else "")


def _together(made: Prepared | Trained | Refitted) -> str:
    ranks = made.ran.members if made.ran else ()
    return f"; {len(ranks)} processes together ({', '.join(each.device for each in ranks)})" if ranks else ""


def _with_features(spec: LifecycleSpec, trained: Trained) -> LifecycleSpec:
    """The spec with the features that a search chose: so are the rows of a refit made."""
    return spec if trained.features is None else spec.model_copy(update={"features": trained.features})
