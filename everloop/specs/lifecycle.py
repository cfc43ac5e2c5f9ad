"""One model's way from data to release."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from everloop import families
from everloop.errors import InvalidSpec
from everloop.families import FAMILIES
from everloop.requirements import MOST_CHARACTERS, Requirement
from everloop.resources import Budget, MaxRuntime, Priority, Queue, Resources
from everloop.search import Search, refused
from everloop.specs.approval import Gate
from everloop.specs.data import Column, ColumnReading, Source
from everloop.specs.drift import Monitor, Retrain
from everloop.specs.features import Features
from everloop.specs.metrics import METRICS, Task
from everloop.specs.predictions import Log
from everloop.specs.stages import LAST_STAGES, Stage
from everloop.specs.training import CODE, TRAINER, Decision, Split, Training, Validation
from everloop.strict import Strict

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]

SPEC_BYTES = 24 << 10
"""Of a spec as JSON: it travels in every request of its lifecycle, and a request may take 64 KiB."""


class LifecycleSpec(Strict):
    """One model's way from data to release."""

    project: Name = "default"
    model: Name
    task: Task
    target: Column
    positive: str | None = None
    """For a binary target: the value that counts as 1, as text. Left out: the larger of the two."""
    target_missing: Literal["error", "drop"] = "error"
    """When more than 1 % of the rows have no target: stop and ask, or leave those rows out."""
    source: Source
    columns: dict[Column, ColumnReading] = {}
    """How columns are read, where the data does not say it by itself."""
    time: Column | None = None
    """Column with the event time: the split follows it, and drift windows use it."""
    key: Column | None = None
    """Column that identifies a row; kept beside predictions, never a feature."""
    group: Column | None = None
    """Column of what must not be torn apart, such as a customer: all its rows are in one part, and on one side of a
    fold. Never a feature. With a time column, rows before others of their group in a later part are left out."""
    weight: Column | None = None
    """Column of numbers from 0: how much each row counts while a model learns. What is measured counts rows alike."""
    class_weight: Literal["balanced"] | dict[str, Annotated[float, Field(ge=0, le=1e6)]] | None = None
    """How much each class counts, by its label (1 where left out); balanced: each as much as any other."""
    features: Features = Features()
    split: Split = Split()
    metric: str = ""
    """The objective the challenger must win on; by default the task's first metric."""
    trainer: Annotated[str, StringConstraints(pattern=TRAINER)] = "lightgbm"
    """What learns: a family of ours (`lightgbm`, `xgboost`, `linear`, `forest`, `torch`, or an `ensemble` of them), or
    a function of yours, `package.module:function`."""
    params: dict[str, Any] = {}
    """For the trainer: of a family of ours what its file in everloop/families has, of your function your own."""
    code: Annotated[str, StringConstraints(max_length=4096)] = ""
    """Where your trainer is: absolute path of a folder or a wheel, which is kept with the snapshot; or `sha256:...`,
    code that was kept before. Left out: it is installed beside Everloop, or comes with `requirements`."""
    requirements: Annotated[tuple[Requirement, ...], Field(max_length=100)] = ()
    """What pip installs for your trainer, as in requirements.txt. Left out: the requirements.txt of `code`."""
    inputs: Literal["raw", "features"] = "raw"
    """What your trainer learns from: the columns as they are, or the numbers that our preparation makes of them."""
    training: Training = Training()
    search: Search | None = None
    """Try families and parameters under a budget, and go on with the best. Left out: train once, as the rest says."""
    validation: Validation = Validation()
    """With `search` and nothing said: auto."""
    calibration: Literal["none", "auto", "sigmoid", "isotonic"] = "none"
    """Make probabilities honest, inside the graph. auto: with the kind that lowers the log loss for sure, where the
    metric is log_loss or a `decision` needs it."""
    decision: Decision | None = None
    """Costs of errors, of a binary target: they say from which probability on the positive class is answered."""
    model_mib: Annotated[int, Field(ge=1, le=1024)] = 20
    """What the exported graph may take, in MiB: a larger one is refused."""
    latency_ms: Annotated[float, Field(gt=0, le=60_000)] | None = None
    """What one row may take in the exported graph, in milliseconds on one thread: a slower one is refused."""
    gate: Gate = Gate()
    monitor: Monitor | None = Monitor()
    retrain: Retrain = Retrain()
    since: datetime | None = None
    """Only rows from this moment on are learned from. A retraining on a trailing window sets it by itself."""
    log: Log = Log()
    """How long predictions stay in the log."""
    resources: Resources = Resources()
    """Cores, memory and GPU of its jobs, for all stages and by stage."""
    queue: Queue = "default"
    """Of its pool: where it waits for them, and whose share it uses."""
    priority: Priority = 50
    """Within its queue; the higher one is served first, and may take what a lower preemptible one has."""
    preemptible: bool = True
    """May its lease be taken for others, after a notice? What is not preemptible has to fit into its queue's quota."""
    max_runtime: MaxRuntime | None = None
    """How long one of its leases lasts at most, by your word: it may then pass others who wait for more room. A lease
    that lasts longer is the first to be taken."""
    budget: Budget | None = None
    """Core-hours, GPU-hours or money that its leases may spend together: then it waits until somebody raises it."""
    until: Stage | None = None
    """End well after this stage, `register` at the latest; left out, it goes on to the release and the monitor."""

    @model_validator(mode="before")
    @classmethod
    def _searched_in_folds(cls, value: Any) -> Any:  # noqa: ANN401
        """What is chosen among many by one held out part is often only lucky there."""
        if isinstance(value, dict) and value.get("search") is not None and "validation" not in value:
            return value | {"validation": {"method": "auto"}}
        return value

    @field_validator("trainer", mode="before")
    @classmethod
    def _known(cls, trainer: object) -> object:
        if isinstance(trainer, str) and not re.match(TRAINER, trainer):
            listed = ", ".join(FAMILIES)
            raise ValueError(f"{trainer[:60]!r} is none of {listed}, and no function such as package.module:function")
        return trainer

    @field_validator("since")
    @classmethod
    def _in_utc(cls, since: datetime | None) -> datetime | None:
        return since if since is None or since.tzinfo else since.replace(tzinfo=UTC)

    @field_validator("code")
    @classmethod
    def _reachable(cls, code: str) -> str:
        if code and not CODE.fullmatch(code):
            raise ValueError("must be the absolute path of a folder or a wheel, or sha256: and 64 hex digits")
        return code

    @model_validator(mode="after")
    def _can_learn(self) -> "LifecycleSpec":
        for name in ("code", "requirements"):
            if getattr(self, name) and not self.own_trainer:
                raise ValueError(f"{name}: only a trainer of yours has it, `trainer: package.module:function`")
        if sum(map(len, self.requirements)) > MOST_CHARACTERS:
            raise ValueError(f"requirements: more than {MOST_CHARACTERS:,} letters; put a requirements.txt into `code`")
        if not self.own_trainer:
            families.check(self.trainer, self.params)
        if self.resources.gang and not self.own_trainer:
            raise ValueError(
                f"resources.members: {self.trainer} learns in one process; a trainer of yours may be a gang "
                "(examples/trainers/torch_ddp)"
            )
        if self.search is not None and (why := refused(self.search, self, METRICS[self.task])):
            raise ValueError(why)
        return self

    @model_validator(mode="after")
    def _has_a_time(self) -> "LifecycleSpec":
        if self.retrain.data == "trailing" and not self.time:
            raise ValueError("retrain.data: a trailing window needs a `time` column")
        if self.since is not None and not self.time:
            raise ValueError("since: needs a `time` column")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "LifecycleSpec":
        if self.metric and self.metric not in METRICS[self.task]:
            raise ValueError(f"metric: {self.metric!r} is not one of {', '.join(METRICS[self.task])}")
        if self.positive is not None and self.task != "binary":
            raise ValueError("positive: only a binary task has a positive class")
        if self.target in (self.time, self.key, self.group, self.weight):
            raise ValueError("target: must not be the time, key, group or weight column")
        if self.decision and self.task != "binary":
            raise ValueError("decision: only a binary task has one threshold")
        if self.calibration != "none" and self.task == "regression":
            raise ValueError("calibration: a regression has no probabilities")
        if self.class_weight and self.task == "regression":
            raise ValueError("class_weight: a regression has no classes")
        if self.until is not None and self.until not in LAST_STAGES:
            raise ValueError(
                f"until: must be one of {', '.join(LAST_STAGES)}; without it the lifecycle goes to its end"
            )
        if self.features.include is not None and self.target in self.features.include:
            raise ValueError("features.include: must not name the target")
        if (size := len(_as_json(self))) > SPEC_BYTES:
            raise ValueError(f"{_largest(self)}: the spec takes {size:,} bytes, more than {SPEC_BYTES:,}; name fewer")
        return self

    @model_validator(mode="after")
    def _looked_at(self) -> "LifecycleSpec":
        changed = {"skew": self.features.skew != "none", "interactions": self.features.interactions > 0}
        if self.own_trainer and self.inputs == "raw" and any(changed.values()):
            name = next(name for name, there in changed.items() if there)
            raise ValueError(f"features.{name}: a trainer of yours sees it with `inputs: features` alone")
        return self

    @property
    def own_trainer(self) -> bool:
        """Does a function of a user learn, and none of our trainers?"""
        return self.trainer not in FAMILIES

    @property
    def objective(self) -> str:
        """Name of the metric that decides between champion and challenger."""
        return self.metric or METRICS[self.task][0]


def _as_json(spec: LifecycleSpec) -> bytes:
    """Raises `ValueError` in our words for what JSON cannot say: half a character, or a value inside itself."""
    try:
        return spec.model_dump_json().encode()
    except ValueError as error:
        why = str(error).removeprefix("Error serializing to JSON: ").partition(": ")[2] or str(error)
        raise ValueError(f"params: cannot be written as JSON: {why[:200]}") from None


def _largest(spec: LifecycleSpec) -> str:
    """The field that takes most room, of those that may take any."""
    lists = {
        "features.include": spec.features.include,
        "features.exclude": spec.features.exclude,
        "columns": spec.columns,
        "params": spec.params,
    }
    return max(lists, key=lambda name: len(str(lists[name] or "")))


def checked(value: dict[str, Any]) -> LifecycleSpec:
    """*value* as a spec. Raises `InvalidSpec` with the first field that is wrong, in plain words."""
    try:
        return LifecycleSpec.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        field = ".".join(map(str, first["loc"])) or message.partition(":")[0]
        what, hint = message.removeprefix(f"{field}: "), "see the comments that `everloop init` writes"
        if first["type"] in WORDS:
            what, hint = WORDS[first["type"]]
            what = f"{repr(first['input'])[:60]} {what}"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise InvalidSpec(f"{field}: {what}{more}", field=field, hint=hint) from None


WORDS = {
    "string_pattern_mismatch": ("is no name", "use a-z, A-Z, 0-9, _ and hyphens, at most 63: for instance churn-2"),
    "string_too_short": ("names nothing", "name a column of the data"),
    "string_too_long": ("is too long a name", "give it a name of at most 500 letters in the data"),
}
"""What pydantic's errors mean to people, and what to do."""
