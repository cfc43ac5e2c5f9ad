"""What a stage leaves behind. Records are small: bulk is in the artifact store and travels as a `Blob`.

Unknown fields are ignored, so that an older worker can read what a newer one wrote.
"""

import hashlib
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, field_validator, model_validator

from everloop.reading import ReadColumn
from everloop.specs import Features, Task


class Record(BaseModel):
    """An immutable value that crosses a process boundary."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Blob(Record):
    """Immutable bytes in the artifact store, addressed by their SHA-256 (64 hex digits)."""

    sha256: str
    size_bytes: int
    name: str = ""
    """What a person would call it: `model.onnx`, `drift.json`. Not part of the address."""


class Member(Record):
    """A part of a lease: what one process of a job may use."""

    rank: int = 0
    device: str
    """Name of a Dask worker."""
    cores: PositiveInt = 1
    """Threads."""
    memory_mib: NonNegativeInt = 0
    """Of the process and all below it; 0: no limit of its own."""
    milli_gpu: NonNegativeInt = 0
    """Thousandths of a GPU."""
    gpu_mib: NonNegativeInt = 0


class Slot(Record):
    """A device that a lease grants: the name of a Dask worker, and the fence token of the grant."""

    device: str
    token: int
    holder: str
    """`<workflow id>/<run id>` of who holds the lease."""
    members: tuple[Member, ...] = ()
    """What may be used, and where. None: of a grant of before, one core of the device."""


class Lease(Record):
    """What a job holds: devices, and the fence token of the grant. One member for now."""

    token: int
    holder: str
    """`<workflow id>/<run id>` of who holds the lease."""
    members: tuple[Member, ...]

    @model_validator(mode="before")
    @classmethod
    def _of_a_slot(cls, value: Any) -> Any:  # noqa: ANN401
        """A slot of stored histories is a lease of one member."""
        if isinstance(value, Slot):
            value = value.model_dump()
        if isinstance(value, dict) and not value.get("members") and "device" in value:
            return {**value, "members": ({"device": value["device"]},)}
        return value

    @field_validator("members")
    @classmethod
    def _some(cls, members: tuple[Member, ...]) -> tuple[Member, ...]:
        if not members:
            raise ValueError("a lease has a member at least")
        return members


class Resumed(Record):
    """What a stage did again because attempts of it were ended, and what it did not."""

    times: int
    """Attempts that went on after another."""
    step: int
    """From where the last one went on: rounds, epochs, or what its function counts. 0: from the beginning."""
    token: int
    """Of the checkpoint it went on from."""
    steps_again: int
    """Over all attempts."""
    seconds_again: float
    at: str = ""
    """The step as its trainer calls it: `round 120 of at most 400`. Empty: an older Everloop kept the checkpoint."""

    def sentence(self, unit: str = "step") -> str:
        """For people: what was kept and what was done again. *unit*: of a step that has no name."""
        again = f"{self.seconds_again:.0f} s of work done again"
        often = f" {self.times} times, at last" if self.times > 1 else ""
        if not self.step:
            return f"begun again{often} without a checkpoint; {again}"
        at = self.at or f"{unit} {self.step:,}"
        return f"resumed{often} at {at} from a checkpoint of token {self.token}; {again}"


class Ran(Record):
    """How a job ran: what `everloop logs` and the lifecycle page show of an attempt."""

    device: str
    token: int
    attempt: int
    seconds: float
    kept: bool = False
    """An earlier attempt had already finished: its result was found and nothing was done again."""
    log: str = ""
    """Path of the log below the logs folder: `jobs/<run id>/<activity id>/<attempt>.log`."""
    resumed: Resumed | None = None
    """What was kept of earlier attempts, and what was done again."""
    artifacts: tuple[Blob, ...] = ()
    """Files that the job kept for people, by name."""
    members: tuple[Member, ...] = ()
    """Of a gang: where its ranks ran. None: one process on `device`."""


class Result(Record):
    """A compute stage's result; `ran` is filled in by the activity."""

    ran: Ran | None = None


class Code(Record):
    """A user's trainer as it was kept, and what it needs: all that a job must have to call it."""

    archive: Blob | None = None
    """A tar of the folder, or a wheel. None: the function is installed beside Everloop, or comes with a requirement."""
    requirements: tuple[str, ...] = ()
    """What pip installs; none: what the requirements.txt of the archive says, if it has one."""

    @property
    def digest(self) -> str:
        """What an approval names: of the archive's digest and the requirements, 64 hex digits."""
        said = [self.archive.sha256 if self.archive else "", *self.requirements]
        return hashlib.sha256("\n".join(said).encode()).hexdigest()


class Column(Record):
    """A column of a table: its name and kind as detected or as fitted."""

    name: str
    kind: Literal["number", "category", "boolean", "datetime", "text"]
    nulls: int = 0
    distinct: int | None = None
    layouts: tuple[str, ...] = ()
    """How its times were written where not in ISO 8601, as strptime says it; `decimal comma` for numbers so written."""


class Snapshot(Result):
    """The source's bytes at one moment. `manifest` lists the files, each a blob of its own."""

    manifest: Blob
    rows: int
    files: int
    size_bytes: int
    columns: tuple[Column, ...]
    schema_digest: str
    time_from: datetime | None = None
    time_to: datetime | None = None
    reading: Blob | None = None
    """JSON of `Reading`: how bytes became columns. None: the first reader's rules."""
    changed: tuple[str, ...] = ()
    """Sentences on what the rules changed, as many as a result that travels through Temporal may list."""
    profile: Blob | None = None
    """JSON: per column its kind, missing and different values and the bars of a histogram; what the rules changed."""
    target_missing: int = 0
    """Rows without a target: nothing is learned from them."""
    rejected: Blob | None = None
    """CSV: the values that are not as declared, with their file and row."""
    code: Code | None = None
    """The user's trainer at that moment, where one learns."""


class Check(Record):
    """One thing that validation looked at. An `error` fails the stage, a `warning` is shown."""

    name: str
    level: Literal["ok", "warning", "error"]
    column: str = ""
    message: str


class Validation(Result):
    """What validation found."""

    checks: tuple[Check, ...]


class Prepared(Result):
    """The rows as the model sees them, split, and the preprocessing that was fitted on the train part."""

    table: Blob | None = None
    """Arrow IPC: features (list of float32), y, part (0 train, 1 validation, 2 test), fold, row (number in the
    snapshot), fresh (bool); row order as read."""
    matrix: Blob | None = None
    """npz of the same without folds, where an older worker prepared."""
    pipeline: Blob
    """JSON: the fitted preprocessing, everything needed to repeat it."""
    train_rows: int
    validation_rows: int
    test_rows: int
    fresh_rows: int
    """Test rows that the champion has never seen."""
    features: tuple[Column, ...]
    """As many as a result that travels through Temporal may list."""
    feature_count: int = 0
    classes: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    """Columns that are not read as they were for the champion: then no row counts as one it has never seen."""
    selection: str = ""
    """What became of the columns where the spec asks for a choice among them: a sentence."""
    left_out_rows: int = 0
    """Labelled rows in no part: by time, those of a group that has rows in a later part."""


class Curve(Record):
    """How one class's probability is calibrated. sigmoid: slope and shift of its log odds; isotonic: places and
    values, lines between them.
    """

    where: tuple[float, ...]
    value: tuple[float, ...]


class Finish(Record):
    """What is done with a model's probabilities; part of the version and of its graph."""

    calibration: Literal["", "sigmoid", "isotonic"] = ""
    curves: tuple[Curve, ...] = ()
    """Of each class; of a binary target of the positive one alone."""
    threshold: float | None = None
    """The probability from which the positive class is answered; none: the likelier class."""


class Trained(Result):
    """A fitted model on the train part."""

    model: Blob
    iterations: int
    """Rounds, epochs, or what `unit` says."""
    metrics: dict[str, float]
    """On the validation part."""
    family: str = "lightgbm"
    """The trainer that can read `model`, as the spec names it."""
    unit: str = ""
    """What the trainer calls one of `iterations`. Empty: an older Everloop trained."""
    parameters: dict[str, Any] = {}
    """What it was fitted with, beyond the spec's `training`."""
    code: Code | None = None
    """The user's code that was called: a refit calls the same."""
    folds: int = 0
    """That `metrics` are of, each row by a model that has not learned it; 0: of the validation part."""
    finish: Finish | None = None
    """Calibration and threshold, where the spec asks for them: a refit and the export keep them."""
    environment: Blob | None = None
    """JSON: Python, platform, seed and installed packages, where a user's code learned."""
    features: Features | None = None
    """The features that a search chose instead of the spec's: what comes after prepares rows so."""
    prepared: Prepared | None = None
    """The rows as it has learned them, where a search chose other features."""


class Comparison(Record):
    """Champion against challenger on the same rows, which neither has seen."""

    verdict: Literal["no_champion", "better", "not_better", "no_fresh_rows"]
    reason: str
    """One sentence with both figures."""
    sure: float | None = None
    """Of samples drawn again from the same rows, the share in which the challenger is the better one. None: not
    tested, by an older Everloop."""
    metric: str = ""
    champion: float | None = None
    challenger: float | None = None
    champion_version: int | None = None
    rows: int = 0


class ColumnScore(Record):
    """What one column was found to say about the target, and whether the model looks at it."""

    column: str
    score: float
    kept: bool


class Evaluation(Result):
    """How the candidate does on the test part, and against the champion on fresh rows."""

    metrics: dict[str, float]
    rows: int
    comparison: Comparison
    report: Blob
    """JSON: metrics, per-class or residual figures, feature importance."""
    importance: dict[str, float] = {}
    """The features that are worth most, as shares of what all are worth."""
    importance_is: Literal["", "native", "permutation"] = ""
    """How that was found: what the family says of itself, or by how much shuffling a feature raises the loss."""
    selected_by: str = ""
    """The method by which columns were chosen, where the spec asks for a choice."""
    selection: tuple[ColumnScore, ...] = ()
    """The first of them by it, the best first; the report has all."""


class Refitted(Result):
    """The model fitted again on all rows of the snapshot, with the iterations that early stopping found."""

    model: Blob
    pipeline: Blob
    rows: int
    seen: Blob
    """npz: `hashes` uint64 of the rows it has learned from, `reading` JSON of how their columns were read."""
    trained_until: datetime | None = None
    family: str = "lightgbm"
    unit: str = ""
    """What its trainer counts."""
    parameters: dict[str, Any] = {}
    code: Code | None = None
    environment: Blob | None = None
    finish: Finish | None = None


class Parity(Record):
    """The exported graph against the trained model, row by row. `mismatches` must be 0."""

    rows: int
    edge_rows: int
    mismatches: int
    max_difference: float
    tolerance: float


class Field(Record):
    """One input of a model, as predict requests name it."""

    name: str
    kind: Literal["number", "category", "boolean", "datetime"]
    nullable: bool = True
    """False: none of the values that the model learned from was missing. (Versions before this was said: True.)"""
    usual: float | None = None
    """What a missing number, boolean or datetime (seconds since 1970) is answered as where it is not nullable."""
    minimum: float | None = None
    maximum: float | None = None
    """Range in training; outside of it is answered but marked."""
    known: tuple[str, ...] = ()
    """For a category: the values (at most 100) that training knew; others are answered as unseen."""
    layouts: tuple[str, ...] = ()
    """For a datetime: how the table wrote it where not in ISO 8601, as strptime says it. Both are understood."""
    read: ReadColumn | None = None
    """How the table's texts became its values. None: by the first reader."""


class Signature(Record):
    """What a model takes and gives."""

    task: Task
    fields: tuple[Field, ...]
    target: str
    classes: tuple[str, ...] = ()
    positive: str = ""
    time: str | None = None
    time_layouts: tuple[str, ...] = ()
    """How the table wrote the time where not in ISO 8601: as strptime says it, or a number's unit (`seconds`, ...)."""
    key: str | None = None
    ignored: tuple[str, ...] = ()
    """Other columns of the training table: a predict request may carry them, the model does not look at them."""
    target_type: Literal["", "text", "integer", "number", "boolean"] = ""
    """What labels are answered as; text where nothing is said."""
    encoding: str = ""
    """Of the table's text files, where it was not UTF-8: so is a CSV file of rows to predict that is not UTF-8."""
    threshold: float | None = None
    """The probability from which the positive class is the label, which is also the graph's output `decision`."""
    time_read: ReadColumn | None = None
    key_read: ReadColumn | None = None


class Exported(Result):
    """One ONNX graph with its preprocessing inside, proven equal to the trained model."""

    model: Blob
    signature: Blob
    """JSON of `Signature`."""
    parity: Parity
    reference: Blob
    """Parquet: up to 50,000 seeded raw feature rows, what drift checks compare with."""
    latency_ms: float | None = None
    """What one row takes in ONNX Runtime on one thread, the median of many. None: an older Everloop exported."""


class Version(Record):
    """A registered model version. Numbers are dense per model, one per lifecycle run."""

    project: str
    model: str
    number: int
    task: Task
    lifecycle: str
    model_digest: str
    """SHA-256 of the ONNX bytes."""
    exported: Exported
    refitted: Refitted
    evaluation: Evaluation
    snapshot: Snapshot
    registered_at: datetime


class Champion(Record):
    """The version that answers now, as a challenger needs it."""

    version: int
    model_digest: str
    model: Blob
    signature: Blob
    seen: Blob
    """npz: `hashes` uint64 of the rows it learned from, `reading` JSON of how their columns were read."""
    trained_until: datetime | None = None
    release_seq: int


class Evidence(Record):
    """What an approver is shown. The digest of its stored text is what a decision signs.

    A new field that is computed needs a new `format`: what was approved before is compared as it was shown then.
    """

    format: int = 1
    """1: as Everloop 0.1 showed it first. 2: binds `signature_digest`, `reference_digest` and `classes` too.
    3: `trainer` and `code_digest`."""
    lifecycle: str
    project: str
    model: str
    version: int
    model_digest: str
    champion_digest: str = ""
    champion_version: int | None = None
    task: Task
    metrics: dict[str, float]
    comparison: Comparison
    parity: Parity
    rows: int
    trained_until: datetime | None = None
    trigger: str
    submitted_by: str
    signature_digest: str = ""
    """SHA-256 of the stored `Signature`: what the model takes, and what its answers mean."""
    reference_digest: str = ""
    """SHA-256 of the reference sample that drift checks compare with."""
    classes: tuple[str, ...] = ()
    """The labels, in the order of the model's outputs."""

    notes: tuple[str, ...] = ()
    """What the reading changed in the data, and how many rows have no target."""
    trainer: str = ""
    """What learned: a family of ours, or a user's function."""
    code_digest: str = ""
    """`Code.digest` of the user's code that was called."""

    def as_format(self, number: int) -> "Evidence":
        """The same without what later formats bind."""
        later: dict[str, Any] = {"format": number} if number < self.format else {}
        if number < 3:  # noqa: PLR2004
            later |= {"trainer": "", "code_digest": ""}
        if number < 2:  # noqa: PLR2004
            later |= {"signature_digest": "", "reference_digest": "", "classes": (), "notes": ()}
        return self.model_copy(update=later)


class Verdict(StrEnum):
    """What a person may say at a gate."""

    APPROVE = "approve"
    REJECT = "reject"


class Claim(Record):
    """What a decision says: the bytes that the API signs (canonical JSON)."""

    gate: str
    """Workflow id of the Approval."""
    nonce: str
    """Made when the gate opened: a decision of an earlier opening does not fit a later one."""
    evidence_digest: str
    model_digest: str
    champion_digest: str
    person: str
    verdict: Verdict
    comment: str
    decided_at: datetime
    expires_at: datetime
    self_approved: bool
    format: int = 1
    """Of the evidence that was looked at: with 2, who verifies the decision must have the evidence's text."""


class Endorsement(Record):
    """A signing key's word for the key that replaces it (`everloop keys rotate`)."""

    public: str
    """The new public key, base64."""
    key_id: str
    """Of the older key, which signs."""
    signature: str
    """Ed25519, base64."""


class Decision(Record):
    """One person's signed answer."""

    claim: Claim
    key_id: str
    signature: str
    """Ed25519 over the text of the claim, base64."""
    signed: str = ""
    """The text that was signed: the claim's JSON. Without it, the canonical JSON of the claim's first fields."""
    endorsements: tuple[Endorsement, ...] = ()
    """From a key that a gate may know to the one that signed, when the key was rotated since the gate opened."""


class RollBack(Record):
    """A person's order to undo a model's latest release: the bytes that the API signs."""

    type: Literal["roll_back"] = "roll_back"
    project: str
    model: str
    release_seq: int
    """The release to undo: the order fits no other."""
    person: str
    reason: str
    ordered_at: datetime
    expires_at: datetime


class SignedRollBack(Record):
    """A person's signed order to undo a release."""

    order: RollBack
    key_id: str
    signature: str
    """Ed25519 over `signed`, base64."""
    signed: str
    """The order's JSON."""


class RouteChange(Record):
    """A change of a model's route, as a history or the ledger says it. `version` 0: nothing answers any more."""

    project: str
    model: str
    release_seq: int
    version: int
    model_digest: str = ""
    lifecycle: str = ""
    undoes: int | None = None
    """The release that a roll back undid."""


class Route(Record):
    """Which version takes a model's traffic. `release_seq` grows by one with each change."""

    project: str
    model: str
    version: int
    model_digest: str
    release_seq: int
    lifecycle: str
    decisions: tuple[Decision, ...]
    released_at: datetime
    evidence: str = ""
    """The text of the evidence that was approved; its digest is in the signed claim."""

    def change(self) -> RouteChange:
        return RouteChange.model_validate(self.model_dump(include=set(RouteChange.model_fields)))


TriggerVerdict = Literal[
    "quiet",
    "retrain",
    "insufficient_data",
    "already_triggered",
    "failed",
    "not_yet",
    "same_drift",
    "cooling_down",
    "over_budget",
    "breaker_open",
    "quarantined",
]
"""What a check's window has led to. From `not_yet` on: over the threshold, and held back by a rule of the monitor.
`quarantined`: the data is broken rather than moved, or was in an earlier window, and a person has not looked yet."""


class Window(Record):
    """A half-open span of event time: start <= t < end, UTC."""

    start: datetime
    end: datetime


class ColumnDrift(Record):
    """Evidently's word on one column."""

    column: str
    method: str
    score: float
    threshold: float
    drifted: bool


MeasureName = Literal["predictions", "target", "missing", "new_categories", "out_of_range", "performance"]


class Measure(Record):
    """What a check found beside the drift of the columns."""

    name: MeasureName
    value: float
    threshold: float
    """From where it is over."""
    over: bool
    why: str
    """A sentence with the figures."""
    column: str = ""
    """The worst one, where it is about columns."""


class Break(Record):
    """A column that is broken rather than moved."""

    column: str
    kind: Literal["missing", "unit"]
    why: str


class WindowPerformance(Record):
    """How well the rows of one window were answered, as far as their labels have come."""

    window: Window
    version: int
    """That answered most of the labelled rows."""
    alone: bool = True
    """No other version answered more than a tenth of them."""
    rows: int
    labelled: int
    metric: str
    value: float
    low: float
    high: float
    """The interval in which it lies at 95 %."""
    target: Measure | None = None
    """How far the labels lie from those that the version was evaluated on."""


class PerformanceReport(Result):
    """What the labels say of the windows that were decided: the newest that have any."""

    windows: tuple[WindowPerformance, ...]
    labels: int
    """That came, each row's last one."""
    joined: int
    """Of them, whose prediction is in the log."""
    corrected: int = 0
    """That came after another of the same row."""
    scanned: int = 0
    """Rows of the log."""


class DriftReport(Result):
    """What a check found in one window."""

    window: Window
    rows: int
    reference_rows: int
    columns: tuple[ColumnDrift, ...]
    share: float
    report: Blob | None = None
    """Evidently's JSON, kept as evidence."""
    insufficient: str = ""
    """Why nothing was computed, or empty."""
    measures: tuple[Measure, ...] = ()
    broken: tuple[Break, ...] = ()


class Wait(Record):
    """What something waits for, since when, and what unblocks it: one sentence for people."""

    what: str
    since: datetime
    unblocks: str

    def sentence(self) -> str:
        return f"Waiting for {self.what} since {self.since:%Y-%m-%d %H:%M:%S} UTC; {self.unblocks}."
