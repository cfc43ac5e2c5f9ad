"""Files become a table: found, kept as they are, read from what was kept, and looked at.

Every stage after `snapshot` reads the canonical table (Parquet blobs of plain types), never the source:
the source may change at any time.
"""

from activities.compute.data.asked import check_spec, nearest
from activities.compute.data.doubts import mistaken
from activities.compute.data.hashing import content_hashes, row_hashes
from activities.compute.data.manifest import load, read_paths, snapshot
from activities.compute.data.sources import find
from activities.compute.data.table import (
    CATEGORY_DISTINCT,
    MINIMUM_ROWS,
    Table,
    array_of,
    bounded,
    describe,
    schema_digest,
    unread_type,
)
from activities.compute.data.target import Target, label_of, target_of
from activities.compute.data.times import event_seconds, moment, month_first, time_layouts
from activities.compute.data.validation import validate

__all__ = [
    "CATEGORY_DISTINCT",
    "MINIMUM_ROWS",
    "Table",
    "Target",
    "array_of",
    "bounded",
    "check_spec",
    "content_hashes",
    "describe",
    "event_seconds",
    "find",
    "label_of",
    "load",
    "mistaken",
    "moment",
    "month_first",
    "nearest",
    "read_paths",
    "row_hashes",
    "schema_digest",
    "snapshot",
    "target_of",
    "time_layouts",
    "unread_type",
    "validate",
]
