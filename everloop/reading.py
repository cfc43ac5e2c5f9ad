"""How bytes become typed columns, as a record: stored with a snapshot, and used by every door that takes rows."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Known(BaseModel):
    """Immutable; unknown fields are ignored, so that an older worker can read what a newer one wrote."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Dialect(Known):
    """How a text file says where a value ends."""

    encoding: str = "utf-8"
    delimiter: str = ","
    quote: str = '"'
    escape: str = '"'
    """What stands before a quote within quotes: a second quote, or a backslash."""
    skip: int = 0
    """Lines before the header: `sep=;`, titles, comments."""
    comment: str = ""
    header: bool = True
    """Where not, columns are called by their place: `column_1`."""


ReadType = Literal["number", "integer", "category", "boolean", "datetime", "text", "identifier"]


class ReadColumn(Known):
    """How the texts of one column become values: the same in training, refit, drift and serving."""

    name: str
    type: ReadType
    format: tuple[str, ...] = ()
    """Of a datetime: the layouts that its texts follow, as strptime says them; none where they are ISO 8601."""
    missing: tuple[str, ...] = ()
    """Texts that mean missing. The empty text always does."""
    quoted: bool = True
    """Whether a text of `missing` also means missing where it stands in quotes."""
    decimal: Literal[".", ","] = "."
    thousands: str = ""
    """What stands between thousands: nothing, a blank (of any width), a comma, a point or an apostrophe."""
    unit: str = ""
    """Text beside each number that is left off: `%`, `$`, `EUR`."""
    trim: bool = True
    """Blanks around a value are left off."""
    scale: int | None = None
    """Digits after the point, where the snapshot keeps exact decimals because float64 would not hold the texts."""
    declared: bool = False
    """Said by the spec, and not found in the data."""


class Reading(Known):
    """How bytes became typed columns. Stored with the snapshot; a snapshot without one is the first reader's."""

    version: int = 2
    dialect: Dialect = Dialect()
    """Of the first file; the manifest says it of each."""
    columns: tuple[ReadColumn, ...] = ()

    def column(self, name: str | None) -> ReadColumn | None:
        return next((column for column in self.columns if column.name == name), None)


class Changed(Known):
    """What the rules made of a column's texts: how many values were read as missing or were no value at all."""

    column: str
    missing: int = 0
    texts: dict[str, int] = {}
    """The texts that were read as missing, most frequent first, without the empty one."""
    rejected: int = 0
    """Values that are not what the spec declares: read as missing."""
    examples: tuple[str, ...] = ()
    """Of the rejected ones."""
    clipped: int = 0
    """Times before year 1 or after 9999, taken to be the nearest that there is."""
    doubt: str = ""
    """What may be meant otherwise, as a sentence."""

    @property
    def frequent(self) -> list[str]:
        """The texts that were read as missing, most frequent first also where a stored record was sorted by name."""
        return sorted(self.texts, key=lambda text: (-self.texts[text], text))

    def sentences(self) -> list[str]:
        """For people: "17 values of `hours` are read as missing: 'NA'"."""
        said = []
        if texts := sum(self.texts.values()):
            listed = ", ".join(map(repr, self.frequent[:3]))
            said.append(f"{_values(texts)} of `{self.column}` {_are(texts)} read as missing: {listed}")
        if self.rejected:
            shown = ", ".join(map(repr, self.examples[:3]))
            said.append(f"{_values(self.rejected)} of `{self.column}` {_are(self.rejected)} not as declared: {shown}")
        if self.clipped:
            said.append(
                f"{_values(self.clipped)} of `{self.column}` {_are(self.clipped)} clipped to the years 1 to 9999"
            )
        return [*said, self.doubt] if self.doubt else said


def _values(count: int) -> str:
    return f"{count:,} value{'s' * (count != 1)}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
