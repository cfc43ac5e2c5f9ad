"""What a user asks for. A spec is YAML, JSON or Python; an unknown field is an error that names it."""

import codecs
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from everloop import families
from everloop.errors import InvalidSpec
from everloop.families import FAMILIES
from everloop.requirements import MOST_CHARACTERS, Requirement
from everloop.resources import Budget, MaxRuntime, Priority, Queue, Resources
from everloop.search import Search, refused
from everloop.strict import Strict

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]
Column = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Task = Literal["binary", "multiclass", "regression"]
Stage = Literal[
    "snapshot",
    "validate",
    "prepare",
    "train",
    "evaluate",
    "refit",
    "export",
    "register",
    "approve",
    "release",
    "monitor",
]
STAGES: tuple[Stage, ...] = Stage.__args__  # type: ignore[attr-defined]  # typing keeps them here
SKIPPABLE: frozenset[Stage] = frozenset({"validate", "monitor"})
"""Stages that a lifecycle can do without: the others produce what the next one needs."""

LAST_STAGES = STAGES[: STAGES.index("approve")]
"""Stages after which a lifecycle may be told to end: from the gate on, people and traffic are in it."""

FORKABLE = STAGES[1 : STAGES.index("export") + 1]
"""Stages from which a fork may begin: what is before them is kept."""

FIRST_READ: dict[str, Stage] = {
    "features": "validate",
    "split": "prepare",
    "trainer": "train",
    "params": "train",
    "inputs": "train",
    "training": "train",
    "search": "train",
    "validation": "train",
    "calibration": "train",
    "decision": "train",
    "class_weight": "train",
    "metric": "evaluate",
    **dict.fromkeys(("resources", "queue", "priority", "preemptible", "max_runtime"), "monitor"),
    "model_mib": "export",
    "latency_ms": "export",
    "gate": "approve",
    "monitor": "monitor",
    "retrain": "monitor",
    "until": "monitor",
}
"""The first stage that reads a field of the spec; of those that are not named here it is the first of all."""

JOB_STAGES: frozenset[Stage] = frozenset({"snapshot", "validate", "prepare", "train", "evaluate", "refit", "export"})
"""Stages that run as a job on a slot, and so leave a log."""

METRICS: dict[Task, tuple[str, ...]] = {
    "binary": ("auc", "log_loss", "accuracy"),
    "multiclass": ("log_loss", "accuracy", "auc"),
    "regression": ("rmse", "mae", "r2"),
}
"""Metrics by task; the first is the default objective. `auc` is macro one-vs-rest for multiclass."""

HIGHER_IS_BETTER = frozenset({"auc", "accuracy", "r2"})


TRAINER = rf"^({'|'.join(FAMILIES)}|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*)$"

SPEC_BYTES = 24 << 10
"""Of a spec as JSON: it travels in every request of its lifecycle, and a request may take 64 KiB."""


CODE = re.compile(r"sha256:[0-9a-f]{64}|/[^\x00]+")


class Source(Strict):
    """Where the rows come from: one file, or a folder of files with the same columns that may grow."""

    path: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    """Absolute path of a file (CSV, TSV, JSON lines, Parquet, Arrow, Excel), of a folder of them, or a glob."""
    encoding: str | None = None
    """Of text files, where it is not found by itself: utf-8, utf-16, cp1252."""

    @field_validator("encoding")
    @classmethod
    def _known(cls, encoding: str | None) -> str | None:
        try:
            return encoding if encoding is None else codecs.lookup(encoding).name
        except LookupError:
            raise ValueError(f"{encoding!r} is no encoding, such as utf-8 or cp1252") from None

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: str) -> str:
        if not path.startswith("/") or "::" in path or "\x00" in path:
            raise ValueError("must be an absolute path to a file of rows (.csv, .parquet, ...), or to a folder of them")
        return path


ColumnType = Literal["number", "integer", "category", "boolean", "datetime", "text", "identifier"]


class ColumnReading(Strict):
    """How one column is read. What is said here wins over what is found in the data; what is not said is found."""

    type: ColumnType | None = None
    """identifier: text for ever, never a number; text: never a category."""
    format: str | tuple[str, ...] = ()
    """Of a datetime: a layout as strptime says it, `%d.%m.%Y`, or several."""
    missing: tuple[str, ...] | None = None
    """Texts that mean missing, in quotes or not, instead of the usual ones; the empty text always does."""
    decimal: Literal[".", ","] | None = None
    trim: bool = True
    """Leave off the blanks around each value."""
    unit: str = ""
    """Text beside each number that is left off: "%" or "$"."""

    @field_validator("format")
    @classmethod
    def _layout(cls, value: str | tuple[str, ...]) -> tuple[str, ...]:
        layouts = (value,) if isinstance(value, str) else value
        for layout in layouts:
            if not layouts_known(layout):
                raise ValueError(f"{layout!r} is no layout of a day, such as %d.%m.%Y or %Y-%m-%d %H:%M:%S")
        return layouts

    @model_validator(mode="after")
    def _fits(self) -> "ColumnReading":
        if self.format and self.type not in (None, "datetime"):
            raise ValueError("format: only a datetime has one")
        if (self.decimal or self.unit) and self.type not in (None, "number", "integer"):
            raise ValueError("decimal, unit: only numbers have them")
        return self

    @property
    def kind(self) -> ColumnType | None:
        """The type that is asked for, also where it only follows from the rest."""
        if self.type or not (self.format or self.decimal or self.unit):
            return self.type
        return "datetime" if self.format else "number"


def layouts_known(layout: str) -> bool:
    """Is it a layout that texts can be read by: strptime's directives for a day, maybe with a time?"""
    directives = re.findall(r"%(.)", layout)
    return bool(directives) and set(directives) <= set("YymdHMSIpbBfjz%") and bool({"Y", "y"} & set(directives))


class Selection(Strict):
    """Columns are ranked on the train part, and the best are kept; a request may bring the others, nobody looks."""

    method: Literal["mutual_information", "correlation", "importance", "l1"] = "mutual_information"
    """Filters: mutual information with the target, or the correlation of ranks. Embedded: by how much LightGBM is worse
    without a column (importance), or how early an L1 penalty lets it into a linear model."""
    keep: Annotated[int, Field(ge=1, le=10_000)] | Annotated[float, Field(gt=0, lt=1)] = 0.5
    """A share of the columns below 1, or how many."""


class Features(Strict):
    """Which columns the model may look at. The target, the time and the key never are features."""

    include: tuple[Column, ...] | None = None
    """Only these; all other columns when left out."""
    exclude: tuple[Column, ...] = ()
    """Never these: leaks (columns known only after the fact) and identifiers."""
    target_mean: bool = False
    """Tell a category of more than 100 values also as the target's mean, fold by fold. LightGBM rarely needs it."""
    near_duplicates: Annotated[float, Field(ge=0.5, lt=1)] | None = None
    """Of two numbers whose correlation is above it, one is left out."""
    selection: Selection | None = None
    """Keep only the columns that say most about the target."""
    skew: Literal["none", "log1p", "yeo_johnson", "quantile"] = "none"
    """Make skewed numbers even, for linear and torch: trees only look at their order."""
    interactions: Annotated[int, Field(ge=0, le=10)] = 0
    """Products and ratios of each pair of so many numbers, those that say most about the target."""


class Split(Strict):
    """How rows are held out: by time where there is a time column, else by a hash of the row."""

    test: Annotated[float, Field(ge=0.05, le=0.5)] = 0.2
    """Share of rows kept for the evaluation (the latest, by time)."""
    validation: Annotated[float, Field(ge=0.05, le=0.5)] = 0.2
    """Share of the remaining rows that decides when training stops."""


class Training(Strict):
    """LightGBM with early stopping, one thread per slot. Every trainer takes the seed from here."""

    rounds: Annotated[int, Field(ge=1, le=5000)] = 400
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.05
    leaves: Annotated[int, Field(ge=2, le=1024)] = 31
    early_stopping: Annotated[int, Field(ge=1, le=1000)] = 30
    """Rounds without a better validation loss after which training stops."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


class Validation(Strict):
    """How a training is judged while it learns. Rows are never shuffled where there is a time column."""

    method: Literal["holdout", "folds", "auto"] = "holdout"
    """holdout: on the validation part. folds: each row by a model that has not learned it (with a time column: each
    stretch of time by what was before it). auto: folds, but where there are more than 50,000 rows."""
    folds: Annotated[int, Field(ge=2, le=20)] = 5
    repeats: Annotated[int, Field(ge=1, le=10)] | None = None
    """With other folds each time. Left out: 3 below 1,000 rows, 2 below 3,000, else 1."""


class Decision(Strict):
    """What a wrong answer to a binary question costs, in any unit. The threshold with the least cost is part of the
    version: its label is the positive class from that probability on.
    """

    false_positive: Annotated[float, Field(gt=0, le=1e12)] = 1.0
    """The positive class was answered and is not true."""
    false_negative: Annotated[float, Field(gt=0, le=1e12)] = 1.0


class Gate(Strict):
    """Who must say yes before a release. Quorum 1 for now: one signed decision settles it."""

    quorum: Literal[1] = 1
    deadline: timedelta = timedelta(days=14)
    """After this long without a decision the gate expires and the version is not released."""

    @field_validator("deadline")
    @classmethod
    def _bounded(cls, value: timedelta) -> timedelta:
        if not timedelta(minutes=1) <= value <= timedelta(days=365):
            raise ValueError("must be between 1 minute and 365 days")
        return value


Also = Literal["predictions", "target", "quality", "performance"]

SPOKEN = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
"""How people write spans of event time: 12h, 30d, 8w."""


class Retrain(Strict):
    """What a retraining that the monitor causes learns from, and how sure its gain must be."""

    data: Literal["all", "trailing"] = "all"
    """all: every row of the source. trailing: those of the last `window` of event time before the drifted window's end.
    """
    window: timedelta | None = None
    """30d, 8w, 12h or ISO 8601 (P30D)."""
    certainty: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """The challenger replaces the champion only where a paired test on the same fresh rows is so sure that it is
    better. 0: any gain will do."""

    @field_validator("window", mode="before")
    @classmethod
    def _spoken(cls, value: object) -> object:
        found = re.fullmatch(r"(\d{1,5})([hdw])", value.strip()) if isinstance(value, str) else None
        return int(found[1]) * SPOKEN[found[2]] if found else value

    @model_validator(mode="after")
    def _fits(self) -> "Retrain":
        if (self.data == "trailing") != (self.window is not None):
            raise ValueError("window: say it with `data: trailing`, such as 30d, and only then")
        if self.window is not None and not timedelta(hours=1) <= self.window <= timedelta(days=3660):
            raise ValueError("window: must be from 1 hour to 3660 days")
        return self


class Monitor(Strict):
    """The watch over the released model: one check per closed window of event time."""

    every: timedelta = timedelta(minutes=15)
    """How often to look whether a window has closed."""
    window: Literal["hour", "day", "week", "month"] = "day"
    """Calendar window of event time, UTC; a week starts on Monday."""
    lateness: timedelta = timedelta(0)
    """A window closes when a row this much later than its end has been seen, or `idle` has passed."""
    idle: timedelta = timedelta(minutes=5)
    """A window whose end is past also closes after this long without any new prediction."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Retrain when at least this share of the columns drifted."""
    windows_in_a_row: Annotated[int, Field(ge=1, le=1000)] = 1
    """So many windows over the threshold, one after the other, cause a retraining; 1: the first one does."""
    calm: Annotated[float, Field(gt=0, le=1)] | None = None
    """After a retraining without a release, another is caused only when a window since was below this share."""
    cool_down: timedelta = timedelta(0)
    """Of event time from one retraining's window to the next one's."""
    retrainings_a_month: Annotated[int, Field(ge=0)] | None = 8
    """At most so many in 30 days of event time; null: no limit."""
    breaker: Annotated[int, Field(ge=1)] | None = 3
    """After so many retrainings of one champion without a release the next one waits for as many measured windows, the
    one after it for twice as many, and so on, or until a person says `everloop rearm`; null: none waits."""
    minimum_rows: Annotated[int, Field(ge=1)] = 100
    """A window with fewer rows is `insufficient_data` and triggers nothing. So is one with fewer labelled rows for
    its performance."""
    also: tuple[Also, ...] = ()
    """What causes a retraining too, beside the share of drifted columns: the answers or the labels drifted
    (`predictions`, `target`), more than `quality` of a column's values are missing, new or out of range (`quality`),
    or the labels say that it answers worse than at its evaluation (`performance`). All are measured and shown."""
    quality: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of a column's rows, beyond what it was in training, from which missing values, new categories or values
    out of range are over."""
    worse_by: Annotated[float, Field(ge=0)] = 0.0
    """In the metric's own unit: performance is over where its whole interval is worse than at the evaluation by more
    than this."""
    quarantine: bool = True
    """Data that is broken rather than moved (a column without values, in another unit, or unreadable) causes no
    retraining: a person is told, and says when it is mended (`everloop lift-quarantine`)."""

    @field_validator("also")
    @classmethod
    def _once(cls, also: tuple[Also, ...]) -> tuple[Also, ...]:
        if len(set(also)) < len(also):
            raise ValueError("names a measure twice")
        return also

    @field_validator("every")
    @classmethod
    def _not_too_often(cls, value: timedelta) -> timedelta:
        if not timedelta(seconds=1) <= value <= timedelta(days=31):
            raise ValueError("must be from 1 second to 31 days")
        return value

    @model_validator(mode="after")
    def _calm_is_below(self) -> "Monitor":
        if self.calm is not None and self.calm > self.share:
            raise ValueError(f"calm: must not be above share, which is {self.share:g}")
        return self

    @field_validator("lateness", "idle", "cool_down")
    @classmethod
    def _not_negative(cls, value: timedelta) -> timedelta:
        if not timedelta(0) <= value <= timedelta(days=366):
            raise ValueError("must be from 0 to 366 days")
        return value


class Log(Strict):
    """The prediction log of the released model."""

    keep: timedelta | None = None
    """How long rows stay, from when they were logged: `90d`, say. Left out: for ever."""

    @field_validator("keep")
    @classmethod
    def _long_enough(cls, value: timedelta | None) -> timedelta | None:
        if value is not None and not timedelta(days=1) <= value <= timedelta(days=36_600):
            raise ValueError("must be from 1 day to 100 years")
        return value


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
