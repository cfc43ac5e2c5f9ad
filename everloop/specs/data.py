"""Where rows come from, and how their columns are read."""

import codecs
import re
from typing import Annotated, Literal

from pydantic import StringConstraints, field_validator, model_validator

from everloop.strict import Strict

Column = Annotated[str, StringConstraints(min_length=1, max_length=500)]


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
