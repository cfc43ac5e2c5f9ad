"""A trainer of your own: what your function is given, and what it may return. Imports nothing heavy.

    def fit(training: Training) -> object:
        model = LogisticRegression(C=training.params.get("C", 1.0), random_state=training.seed)
        return model.fit(training.train.numpy(), training.train.y)

The spec names it, `trainer: "package.module:fit"`, and where it is, `code: /absolute/folder`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class Rows(Protocol):
    """Rows to learn from. Each method makes its answer when it is called, and makes it anew each time."""

    def __len__(self) -> int: ...

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns, or with `inputs: features` of the features; in the order of every answer."""

    @property
    def y(self) -> Any:  # noqa: ANN401  # a NumPy array
        """The target [rows]: places in `Training.classes` (int64), or numbers (float64).

        With `inputs: features` numbers are centred and scaled, as our own trainers learn them; what your model
        answers is turned back by us.
        """

    @property
    def weights(self) -> Any:  # noqa: ANN401  # a NumPy array
        """How much each row counts [rows], float64, by `weight` and `class_weight` of the spec; without them 1."""

    def arrow(self) -> Any:  # noqa: ANN401
        """A `pyarrow.Table`. Raw columns have their own types: int64, double, decimal128, bool, timestamp[us, UTC],
        string, and a category as a dictionary of strings; missing is null. Features are float, missing is NaN.
        """

    def pandas(self) -> Any:  # noqa: ANN401
        """A `pandas.DataFrame` of the same; categories are `Categorical`, decimals `decimal.Decimal`."""

    def numpy(self) -> Any:  # noqa: ANN401
        """Features as float32 [rows, features]. Raw columns as {name: array [rows]}: numbers, booleans and decimals
        as float64 (missing is NaN), times as datetime64[us] (NaT), texts as objects (missing is "").
        """

    def loader(
        self, batch_size: int = 1024, *, shuffle: bool = False, epoch: int = 0, rank: int = 0, world_size: int = 1
    ) -> Any:  # noqa: ANN401
        """A `torch.utils.data.DataLoader` of (batch, y). Shuffled, its order follows from the seed and *epoch* alone.

        So a training that goes on at a checkpoint sees the rows as it would have. A second pass counts as the next
        epoch. In a gang give `rank` and `world_size`: each rank gets its share of every batch, and all batches are the
        same however many ranks there are. A last batch with fewer rows than ranks is left out.

        Features: float32 [batch, features]. Raw: {name: float64 [batch], or a list of texts}; times are seconds
        since 1970. y: int64 or float32 [batch].
        """

    def batches(self, size: int = 65_536) -> Iterator["Rows"]:
        """The same rows in order, at most *size* at once: for what does not fit into memory as a whole."""


class Training(Protocol):
    """The one argument of your function, for the process that was given it: in a fork of it each method raises."""

    @property
    def train(self) -> Rows: ...

    @property
    def validation(self) -> Rows | None:
        """The rows that say when to stop. None in a refit, which learns from all rows: see `iterations`."""

    @property
    def iterations(self) -> int | None:
        """In a refit: the rounds or epochs that training found. Else None."""

    @property
    def params(self) -> Mapping[str, Any]:
        """The spec's `params`."""

    @property
    def seed(self) -> int:
        """The spec's `training.seed`. The generators of `random`, NumPy and torch are already seeded with it."""

    @property
    def task(self) -> str:
        """`binary`, `multiclass` or `regression`."""

    @property
    def target(self) -> str:
        """Name of the target's column; it is in no `Rows`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels as texts; `Rows.y` holds places in it. Binary: the positive class is the second."""

    @property
    def categorical(self) -> tuple[str, ...]:
        """Which of `Rows.names` are categories: raw texts, or the whole numbers that stand for them (0: unseen)."""

    @property
    def cores(self) -> int:
        """Threads that the lease grants to this process."""

    @property
    def rank(self) -> int:
        """Of this process in its gang (`resources: {members: ...}`): 0 of 1 where it is alone.

        Every rank runs your function. Call `checkpoint`, `restore` and `should_stop` on all ranks alike: what rank 0
        decides all are told, so that they stop together. The state that rank 0 gives is kept. A rank other than 0 may
        return None.
        """

    @property
    def world_size(self) -> int:
        """How many there are. An attempt after this one may have more or fewer, within `members`."""

    @property
    def rendezvous(self) -> Any:  # noqa: ANN401
        """Where the ranks meet: `rendezvous.host` is rank 0's, `rendezvous.folder` (a path, or a URL of the artifact
        store) is new for every attempt, and `rendezvous.store()` is a `torch.distributed.TCPStore` of them all.
        """

    def join(self, backend: str = "") -> None:
        """Make torch's process group of all ranks, once: `nccl` where there is a GPU, else `gloo`. Also of one."""

    @property
    def lease(self) -> Any:  # noqa: ANN401
        """The devices that are held: `lease.members[rank]` has `device`, `cores` and `memory_mib`."""

    @property
    def scratch(self) -> Path:
        """A folder of this job alone, removed afterwards."""

    def report(self, step: int, /, **values: float) -> None:
        """Show progress: numbers by name at a round or epoch.

        `train_<metric>` and `validation_<metric>` become learning curves, `most` is how many steps there will be at
        most, `rounds`, `epochs` and `trees` say what a step is. A value that is NaN or infinite is left out. Raises
        `Invalid` for a step that is no whole number from 0 on, a value that is no number, and more than 4,096 bytes.
        """

    def checkpoint(self, step: int, state: Mapping[str, Any] | Callable[[], Mapping[str, Any]]) -> bool:
        """Keep *state* (JSON values, texts, NumPy arrays, nested) after *step* if that is due now. Was it kept?

        A function is called only when it is due. When the job is to end this does not return.
        """

    def restore(self) -> tuple[int, dict[str, Any]] | None:
        """Step and state of the newest checkpoint of this stage, where an earlier attempt was ended."""

    def should_stop(self) -> bool:
        """The job has to end: keep a checkpoint and return. What is returned then is dropped."""

    def shrink(self, most: int = 3) -> int:
        """How often this stage has run out of memory: halve your batch so often, and accumulate.

        Who asks says that it can do with less: it is then run again, up to *most* times, before a person is asked.
        """

    def log_artifact(self, name: str, data: bytes | Path) -> None:
        """Keep a file beside the stage's result, for people."""


@dataclass(frozen=True)
class Learned:
    """What your function returns when the model alone does not say enough."""

    model: object
    """An ONNX model (bytes or `ModelProto`), a `torch.nn.Module`, or an estimator with `predict_proba` or `predict`.

    ONNX: with `inputs: raw` the inputs are named as columns, [rows, 1] or [rows]: float or double for numbers,
    booleans (0, 1) and times (seconds since 1970), where missing is NaN; string for texts, where missing is "".
    With `inputs: features` there is one, float [rows, features]. The output: probabilities [rows, classes] in the
    order of `Training.classes`, of a binary target also [rows] of the positive class; or values [rows].
    A row must be answered by itself: no mean over the rows that are asked together.
    A module and an estimator take features (`inputs: features`); a module gives logits, or values.
    """
    iterations: int | None = None
    """Rounds or epochs that a refit shall repeat. None: the last step that was reported."""
    predict: Callable[[Rows], Any] | None = None
    """For ONNX: what the graph must answer, in the same shape. Each row of a sample is compared with it."""
    probabilities: bool = False
    """Of a module: it gives probabilities and no logits."""
