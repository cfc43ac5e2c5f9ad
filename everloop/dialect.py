"""How a text file is laid out: its encoding, its delimiter, how it escapes quotes, and where its header is.

Standard library only: the same word in `init`, in the snapshot and where the command line sends a file of rows.
"""

import codecs
import csv
import io
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from everloop.reading import Dialect
from everloop.texts import BLANKS

HEAD = 1 << 16
"""Characters that a header line is looked for in."""
LINES = 6
"""The header and the rows after it that say what separates the columns."""
QUOTED = re.compile(r'(^|[,;|\t\r\n]) *"(?:[^"\\]|""|\\.)*("|$)')
BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
MOST_BEFORE = 20
"""Lines before the header that may be titles or comments."""
SEPARATOR = re.compile(r"sep=(.)\r?\n?", re.IGNORECASE)
"""The first line of a file that was made for Excel."""
ODD_DELIMITERS = ":~^ "
"""Those that are thought of last."""
PLACE = re.compile(r"column_[1-9]\d*")
"""A column of a file without a header."""
LONGEST_CELL = 16 << 20
CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
"""Bytes that no text holds."""


HIGH = re.compile(rb"[\x80-\xff]+")
FOREIGN = (
    *("cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258", "cp874", "koi8_r"),
    *("gb18030", "cp932", "cp949", "big5", "euc_jp"),
)
"""Encodings of other scripts than the western ones. Nothing in a file says which it is."""
ENOUGH, MOSTLY = 12, 0.5
"""Bytes beyond ASCII that tell western text, in which such letters stand alone, from other scripts."""


def delimiter_of(head: str) -> str:
    """What separates the columns of a CSV file that begins with *head*.

    It splits the header and the next rows into the same number of fields, more than one. Where several do, a comma is
    the least likely: unquoted names (`Area, m2`) and decimal commas stand in every row, too. Where none does, the
    header alone says it, and the comma wins a draw. What is in quotes does not count, also not line breaks.
    """
    lines = [line for line in re.split(r"[\r\n]+", QUOTED.sub(r"\1", head)) if line]
    if len(lines) > 1 and len(head) >= HEAD:
        lines.pop()  # it may go on
    counts = {one: [line.count(one) for line in lines[:LINES]] for one in ",;\t|"}
    steady = [one for one in "\t;|," if len(counts[one]) > 1 and counts[one][0] and len(set(counts[one])) == 1]
    return steady[0] if steady else max(counts, key=lambda one: counts[one][:1])


def column_names(header: list[str]) -> list[str]:
    """Names of the columns; one without a name is called by its place."""
    return [cell or f"unnamed_{place}" for place, cell in enumerate(header, 1)]


def encoding_of(head: bytes, *, ascii_or_utf8: bool) -> str | None:
    """The encoding of a file that begins with *head*; None where it is no text.

    *ascii_or_utf8*: whether all of its bytes are UTF-8. What is not, and is no UTF-16, is Windows' Latin-1 (cp1252),
    where it looks like it: other scripts' codes are for people to say.
    """
    for mark, name in BOMS:
        if head.startswith(mark):
            return name
    if (wide := _wide(head)) is not None:
        return wide
    if ascii_or_utf8:
        return "utf-8"
    return None if CONTROL.search(head) else "cp1252"


def encoding_by_names(head: bytes, wanted: Collection[str]) -> str | None:
    """The encoding in which a file that begins with *head* says the names of *wanted*; None where they do not tell."""
    names = [name for name in wanted if not name.isascii()]
    if not names:
        return None
    for encoding in ("cp1252", *FOREIGN):
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(head)
        except UnicodeDecodeError:
            continue
        if all(name in text for name in names):
            return encoding
    return None


def is_western(data: bytes) -> bool:
    """Does text that is no UTF-8 look like Windows' Latin-1 (cp1252)? There such letters stand alone, or by two."""
    runs = [len(run) for run in HIGH.findall(data)]
    together = sum(run for run in runs if run > 2)  # noqa: PLR2004  # as in `créée`
    return sum(runs) < ENOUGH or together <= MOSTLY * sum(runs)


def _wide(head: bytes) -> str | None:
    """UTF-16 without a mark: of line ends and delimiters every other byte is 0, always the same one of two."""
    head = head[: len(head) // 2 * 2]
    for name, zeros, others in (("utf-16-le", head[1::2], head[::2]), ("utf-16-be", head[::2], head[1::2])):
        if 0 not in zeros or 0 in others:
            continue
        text = head.decode(name, "ignore")  # a pair of surrogates may be cut at the end
        if ("\n" in text or "\r" in text) and not re.search(r"[\x00-\x08\x0e-\x1f\ufffe\uffff]", text):
            return name
    return None


@dataclass(frozen=True)
class Layout:
    """What may separate and quote the values of a file."""

    delimiter: str
    quote: str = '"'
    backslash: bool = False
    """A backslash escapes a quote."""
    comment: str = ""
    """What lines begin with that are no rows."""


def escaped(quote: str) -> str:
    """A pattern of quotes within a value as Spark writes them; not of a value that ends in a backslash."""
    return rf"\\{quote}[^,;|:~^\t\r\n{quote}]"


def said_delimiter(text: str) -> str:
    """What the first line says that separates values (`sep=;`), as in a file that was made for Excel."""
    said = SEPARATOR.match(text)
    return said[1] if said else ""


def found(
    text: str,
    wanted: Collection[str] = (),
    sniffed: Sequence[Layout] = (),
    *,
    backslash: Callable[[str], bool] = lambda quote: False,  # noqa: ARG005
    encoding: str = "utf-8",
) -> Dialect:
    """The dialect of a file that begins with *text*.

    Its header is the line that names most of *wanted*, split in one of the ways that were *sniffed* or that we think
    of; where no line does, the first one. *backslash*: whether somewhere in the file a backslash escapes such a quote
    (see `escaped`), as the sniffer sees the first rows only.
    """

    def dialect(layout: Layout, skip: int) -> Dialect:
        slashed = layout.backslash or backslash(layout.quote)
        escape = "\\" if slashed else layout.quote
        made = Dialect(encoding=encoding, delimiter=layout.delimiter, quote=layout.quote, escape=escape, skip=skip)
        return made.model_copy(update={"comment": layout.comment})

    if between := said_delimiter(text):
        return dialect(next(iter(sniffed), Layout(between)), 1)
    wanted = frozenset(wanted)
    best, place, before = (0, False), None, ""
    start, line = 0, 0
    while line < MOST_BEFORE and start < len(text) and wanted:
        rest = text[start:]
        for layout in (*sniffed, Layout(delimiter_of(rest)), *map(Layout, ODD_DELIMITERS)):
            names = _names(rest, dialect(layout, 0))
            score = (len(wanted & names), len(names) > 1)
            if score[0] and score > best:
                best, place, before = score, (layout, line), text[:start].lstrip(BLANKS)
        if best == (len(wanted), True):
            break
        ending = re.compile(r"\r\n|\n|\r").search(text, start)
        start, line = (ending.end() if ending else len(text)), line + 1
    if place:
        there = dialect(*place)
        return there.model_copy(update={"comment": before[:1]}) if before[:1] in ("#", "%") else there
    first = dialect(next(iter(sniffed), Layout(delimiter_of(text))), 0)
    if any(PLACE.fullmatch(name) for name in wanted):
        return first.model_copy(update={"header": False})
    return first


def _names(text: str, dialect: Dialect) -> frozenset[str]:
    try:
        return frozenset(header(text, dialect)[0])
    except csv.Error:
        return frozenset()


def header(text: str, dialect: Dialect) -> tuple[list[str], int]:
    """Names of the columns, and how many lines the file has before its first row. Raises `csv.Error`."""
    cells, lines = _first_row(text, dialect, blanks=False)
    names = [cell.strip(BLANKS) for cell in cells]
    if not dialect.header:
        return [f"column_{place}" for place in range(1, len(names) + 1)], dialect.skip
    if len(set(names)) < len(names):  # a blank is all that tells ` lead` from `lead`
        written, _ = _first_row(text, dialect, blanks=True)
        names = written if len(set(written)) == len(names) else names
    return column_names(names), lines


def _first_row(text: str, dialect: Dialect, *, blanks: bool) -> tuple[list[str], int]:
    lines = io.StringIO(text, newline="")
    for _ in range(dialect.skip):
        lines.readline()
    reader = rows(lines, dialect, blanks=blanks)
    return next(reader, []), dialect.skip + reader.line_num


def rows(lines: Iterator[str], dialect: Dialect, *, blanks: bool = False) -> Any:  # noqa: ANN401  # a csv.reader, whose type has no public name
    """The rows of a file as texts. Blanks before a value are left off, so that they hide no quote, unless *blanks*."""
    csv.field_size_limit(LONGEST_CELL)
    doubled = dialect.escape == dialect.quote
    return csv.reader(
        lines,
        delimiter=dialect.delimiter,
        quotechar=dialect.quote,
        doublequote=doubled,
        escapechar=None if doubled else dialect.escape,
        skipinitialspace=not blanks and dialect.delimiter != " ",
    )
