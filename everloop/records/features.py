"""The rows as the model sees them."""

from everloop.records.data import Column
from everloop.records.job import Result
from everloop.records.record import Blob


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
