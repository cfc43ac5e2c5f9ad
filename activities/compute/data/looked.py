"""One column of one file while it is decided how it is read."""

from dataclasses import dataclass, field

import duckdb
import pyarrow as pa

from activities.compute.data import typed
from activities.compute.data.files import OURS, Opened
from everloop.reading import ReadColumn
from everloop.texts import Decided

TEXTUAL = ("category", "text", "identifier")


@dataclass
class Looked:
    """What is known of one column of one file."""

    place: int
    kind: pa.DataType | None
    """Its type, where the file has types."""
    texts: set[str] = field(default_factory=set)
    checked: Decided | None = None
    """The last decision that was held against all rows."""
    surprises: int = 0
    missing: int = 0
    blanks: int = 0
    """Texts other than the empty one that were read as missing."""
    longest: int = 0
    clipped: int = 0

    @property
    def textual(self) -> bool:
        return self.kind is None or typed.is_text(self.kind)

    def kept(self, column: ReadColumn) -> bool:
        """Are its values, which have a type, kept without becoming texts?"""
        return not self.textual and (not column.declared or typed.kept(self.kind, column.type, column.missing))

    @property
    def unread(self) -> bool:
        """Has it a type that no model understands?"""
        kind = self.kind
        return (
            kind is not None
            and not self.textual
            and not pa.types.is_null(kind)
            and (typed.read_column("", kind) is None)
        )


def ask(file: Opened, query: str, duck: duckdb.DuckDBPyConnection) -> list[tuple[object, ...]]:
    """The answer to *query* about the file's `{rows}`. Raises `InvalidData` in plain words."""
    while True:
        try:
            return list(duck.execute(query.replace("{rows}", file.relation())).fetchall())
        except OURS:
            raise
        except duckdb.Error as error:
            if not file.adapt(str(error)):
                raise file.fault(str(error)) from None
