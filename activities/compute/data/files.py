# ruff: noqa: T201  # what a job prints is its log
"""A file of any format, made ready for DuckDB: text files as columns of texts, the others as typed Parquet."""

import codecs
import csv
import mmap
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet

from activities.compute.data import typed
from activities.compute.data.dialect import sniffed
from activities.compute.data.engine import parquet
from activities.compute.data.engine import text as quoted
from activities.compute.data.rules import ODD_BLANKS
from activities.compute.data.sources import compression_of, format_of
from everloop import dialect as dialects
from everloop.dialect import HEAD
from everloop.errors import InvalidData
from everloop.reading import Dialect
from everloop.texts import BLANKS, USUAL

CHUNK_BYTES = 4 << 20
LONGEST_LINE = 16 << 20
BUFFER_BYTES = 2 * LONGEST_LINE
"""What DuckDB reads of a text file at once; left to itself it takes sixteen times the longest line."""
NEVER = "everloop/no-cell-is-this"
SPACED = tuple(before + text + after for text in USUAL for before, after in (("", ""), (" ", ""), ("", " ")))
OURS = (duckdb.OutOfMemoryException, duckdb.IOException)
"""What DuckDB raises that says nothing of a file's content."""
COMPRESSIONS = {"gz": "gzip", "zst": "zstd", "bz2": "bz2"}


@dataclass
class Opened:
    """A file that DuckDB can read."""

    name: str
    """What errors call it."""
    path: Path
    columns: tuple[str, ...]
    types: dict[str, pa.DataType] = field(default_factory=dict)
    """Of a file with types of its own, by column; none for a text file."""
    dialect: Dialect | None = None
    lines: int = 0
    """Before the first row."""
    quoted_blanks: bool = False
    """Somewhere a text that may mean missing stands in quotes."""
    newline: str = "\n"
    odd_blanks: str = ODD_BLANKS
    """Blanks that some value may hold and that are no plain ones: tabs, line breaks."""

    @property
    def typed(self) -> bool:
        return self.dialect is None

    def relation(self, *, nulls: bool = False) -> str:
        """The rows as SQL, columns named c0, c1, ... With *nulls*, an unquoted text that means missing is null."""
        if self.dialect is None:
            return f"(SELECT * FROM {parquet([self.path], len(self.columns))})"
        columns = ", ".join(f"'c{place}': 'VARCHAR'" for place in range(len(self.columns)))
        told = [text for text in SPACED if self.dialect.delimiter not in text] if nulls else [NEVER]
        blanks = ", ".join(map(quoted, told))
        # DuckDB 2.0 finds no row in strict mode when it is told CR LF; untold it finds that ending by itself.
        ends = f"new_line = {quoted(repr(self.newline)[1:-1])}, " if self.newline != "\r\n" else ""
        return (
            f"read_csv({quoted(str(self.path))}, auto_detect = false, header = false, skip = {self.lines}, "
            f"delim = {quoted(self.dialect.delimiter)}, quote = {quoted(self.dialect.quote)}, "
            f"escape = {quoted(self.dialect.escape)}, "
            f"columns = {{{columns}}}, nullstr = [{blanks}], allow_quoted_nulls = false, strict_mode = true, "
            f"{ends}max_line_size = {LONGEST_LINE}, buffer_size = {BUFFER_BYTES}, compression = 'none')"
        )

    def adapt(self, fault: str) -> bool:
        """Look at the file another way, after DuckDB's *fault*. False where there is no other."""
        if self.dialect is None:
            return False
        if "quote" not in fault or self.dialect.escape == "\\":
            return False
        with mapped(self.path) as data:
            if data.find(b"\\" + self.dialect.quote.encode()) < 0:
                return False
        self.dialect = self.dialect.model_copy(update={"escape": "\\"})
        return True

    def fault(self, message: str) -> InvalidData:
        """DuckDB's word on the file, for people."""
        hint = "mend or remove the file"
        row = re.search(r"CSV Error on Line: (\d+)", message)
        where = f"row {int(row[1]):,} (the header is row 1)" if row else "a row"
        if counts := re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", message):
            what = f"{where} has {counts[2]} fields where the header has {counts[1]}"
        elif "quote" in message:
            what = f"{where} has a quote that does not end"
        else:
            what = "it is not readable as a table"  # DuckDB's own words may quote what stands in it
        return InvalidData(f"{self.name}: {what}", field="source.path", hint=hint)


def open_file(  # noqa: PLR0917
    path: Path,
    name: str,
    scratch: Path,
    wanted: Collection[str],
    encoding: str | None,
    duck: duckdb.DuckDBPyConnection,
    dialect: Dialect | None = None,
) -> Opened:
    """The file at *path*, which people call *name*; *dialect*: of a text, where it is known. Raises `InvalidData`."""
    if path.stat().st_size == 0:
        raise InvalidData(f"{name} is empty", field="source.path", hint="it needs a header line and rows")
    kind = format_of(name)
    if kind == "csv":
        opened = _text(path, name, scratch, wanted, encoding, duck, dialect)
    else:
        opened = _typed(path, name, str(kind), scratch, wanted)
    if twice := [column for column, count in Counter(opened.columns).items() if count > 1]:
        hint = "give each column its own name"
        raise InvalidData(f"{name} has two columns named {twice[0]!r}", field=twice[0], hint=hint)
    return opened


def _typed(path: Path, name: str, kind: str, scratch: Path, wanted: Collection[str]) -> Opened:
    table = path if kind == "parquet" else typed.as_parquet(path, name, kind, scratch, wanted)
    try:
        schema = pa.parquet.read_schema(table)
    except (pa.ArrowException, OSError) as error:
        reason = ": it does not end as one does" if "magic bytes" in str(error) else ""
        hint = "write it again, with pandas' or pyarrow's Parquet writer"
        raise InvalidData(f"{name} is not a readable Parquet file{reason}", field="source.path", hint=hint) from None
    columns = tuple(dialects.column_names([column.strip(BLANKS) for column in schema.names]))
    if len(set(columns)) < len(columns):
        columns = tuple(dialects.column_names(schema.names))
    types = {column: typed.plain_type(each.type) for column, each in zip(columns, schema, strict=True)}
    return Opened(name=name, path=table, columns=columns, types=types)


def _text(  # noqa: PLR0917
    path: Path,
    name: str,
    scratch: Path,
    wanted: Collection[str],
    encoding: str | None,
    duck: duckdb.DuckDBPyConnection,
    dialect: Dialect | None,
) -> Opened:
    if compression := compression_of(name):
        path = _unpacked(path, name, compression, scratch)
    path, encoding, scan = _readable(path, name, wanted, dialect.encoding if dialect else encoding, scratch)
    ends = scan.ends
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as text:
        start = text.read(HEAD)
    try:
        dialect = dialect or _dialect(path, start, wanted, encoding, duck)
        names, lines = dialects.header(start, dialect)
        if len(start) == HEAD and len("".join(names)) > HEAD // 2:  # it may go on
            with path.open(encoding="utf-8-sig", errors="replace", newline="") as text:
                names, lines = dialects.header(text.read(LONGEST_LINE), dialect)
    except csv.Error as error:
        hint = "the first line must name the columns"
        raise InvalidData(f"{name} has no readable header line ({error})", field="source.path", hint=hint) from None
    _check_header(name, names, start, lines)
    with mapped(path) as data:
        blanks = _blank_in_quotes(dialect).search(data) is not None
        odd = _odd_blanks(data, dialect, scan)
    if dialect.comment or len(ends) > 1 or lines > dialect.skip + 1:
        # DuckDB takes the first line's end, also of one within quotes, for every line's.
        path, lines, ends = _plain(path, dialect, len(names), scratch, lines), 0, ["\n"]
    ended = ends[0] if ends else "\n"
    return Opened(
        name, path, tuple(names), dialect=dialect, lines=lines, quoted_blanks=blanks, newline=ended, odd_blanks=odd
    )


def _readable(
    path: Path, name: str, wanted: Collection[str], encoding: str | None, scratch: Path
) -> tuple[Path, str, "Scan"]:
    """The file as UTF-8, what it was written in, and what a look at all of it says."""
    with path.open("rb") as source:
        head = source.read(HEAD)
    scan = _scanned(path)
    said = encoding
    encoding = said or dialects.encoding_of(head, ascii_or_utf8=scan.utf8)
    if encoding == "cp1252" and not said:
        encoding = _not_utf8(path, name, wanted)
    if encoding is None:
        hint = "save it as UTF-8, or say `encoding` in the spec's source, such as shift_jis, gb18030 or cp1251"
        raise InvalidData(f"{name} is not UTF-8 text, nor UTF-16 or Latin-1", field="source.path", hint=hint)
    if encoding in ("utf-8", "utf-8-sig", "ascii"):
        if not scan.utf8:
            hint = "say another `encoding` in the spec's source, or save it as UTF-8"
            raise InvalidData(f"{name} is not {encoding} text", field="source.encoding", hint=hint)
        return path, encoding, scan
    path, encoding = _as_utf8(path, name, encoding, scratch)
    print(f"{name}: read as {encoding}")
    return path, encoding, _scanned(path)


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """A file's bytes to search in, of which the kernel keeps as many in memory as it likes."""
    with path.open("rb") as source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _dialect(
    path: Path, start: str, wanted: Collection[str], encoding: str, duck: duckdb.DuckDBPyConnection
) -> Dialect:
    def backslash(quote: str) -> bool:
        with mapped(path) as data:
            return re.search(dialects.escaped(quote).encode(), data) is not None

    found = sniffed(path, duck, dialects.said_delimiter(start))
    return dialects.found(start, wanted, found, backslash=lru_cache(backslash), encoding=encoding)


def _check_header(name: str, names: Sequence[str], start: str, lines: int) -> None:
    """Raises `InvalidData` where a file that begins with *start* is no table."""
    if not any(names) or any("\0" in cell for cell in names) or not start.strip():
        hint = "the first line must name the columns"
        raise InvalidData(f"{name} has no header line", field="source.path", hint=hint)
    if len(start) < HEAD and not any(line.strip() for line in re.split(r"\r\n|\r|\n", start)[lines:]):
        hint = "add rows, or remove the file"
        raise InvalidData(f"{name} has a header but no rows", field="source.path", hint=hint)
    if len(names) == 1:  # nothing in it is quoted, also not as a column's name
        hint = "commas, semicolons or tabs separate columns; a table has a target and at least one other column"
        raise InvalidData(f"{name} is no table: its first line has one column", field="source.path", hint=hint)


def _blank_in_quotes(dialect: Dialect) -> re.Pattern[bytes]:
    quote = dialect.quote
    return re.compile(f"{quote} *({'|'.join(map(re.escape, USUAL))}) *{quote}".encode())


def _not_utf8(path: Path, name: str, wanted: Collection[str]) -> str:
    """The encoding of text that is not UTF-8: what the spec's names tell, else cp1252. Raises `InvalidData`."""
    with path.open("rb") as source:
        data = source.read(CHUNK_BYTES)
    if found := dialects.encoding_by_names(data[:HEAD], wanted):
        return found
    if not dialects.is_western(data):
        hint = (
            "say its encoding (`everloop init --encoding`, or `encoding` under the spec's source): cp1251 Cyrillic, "
            "gb18030 or big5 Chinese, cp932 Japanese, cp949 Korean, cp1253 Greek, cp1255 Hebrew, cp1256 Arabic"
        )
        message = f"{name} is not UTF-8, and its letters are not those of western languages (cp1252)"
        raise InvalidData(message, field="source.encoding", hint=hint)
    return "cp1252"


def _odd_blanks(data: mmap.mmap, dialect: Dialect, scan: "Scan") -> str:
    """Those that are in the file at all; line breaks are part of values in quotes alone."""
    quotes = data.find(dialect.quote.encode()) >= 0
    there = [blank for blank in ODD_BLANKS if quotes if blank in "\r\n"]
    others = (blank for blank in ODD_BLANKS if blank not in "\r\n" and (blank.isascii() or not scan.ascii))
    return "".join([*there, *(blank for blank in others if data.find(blank.encode(), 3) >= 0)])


def _fresh(scratch: Path) -> Path:
    number = 0
    while (path := scratch / f"plain-{number}.csv").exists():
        number += 1
    return path


def _unpacked(path: Path, name: str, compression: str, scratch: Path) -> Path:
    target = _fresh(scratch)
    try:
        with pa.input_stream(str(path), compression=COMPRESSIONS[compression]) as source, target.open("wb") as out:
            while chunk := source.read(CHUNK_BYTES):
                out.write(chunk)
    except (pa.ArrowException, OSError) as error:
        hint = "write it again"
        raise InvalidData(f"{name} is not readable as {compression}: {error}", field="source.path", hint=hint) from None
    if target.stat().st_size == 0:
        raise InvalidData(f"{name} is empty", field="source.path", hint="it needs a header line and rows")
    return target


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as source:
        while chunk := source.read(CHUNK_BYTES):
            yield chunk


@dataclass(frozen=True)
class Scan:
    """What a look at all bytes of a file says."""

    ascii: bool
    utf8: bool
    ends: list[str]
    """The ways in which lines end, in quotes or not."""


def _scanned(path: Path) -> Scan:
    decoder = codecs.getincrementaldecoder("utf-8")()
    plain, utf8, between = True, True, False  # between: a letter goes on in the next chunk
    both, returns, feeds, last = 0, 0, 0, b""
    for chunk in _chunks(path):
        back = chunk.count(b"\r")  # most files have none, and a byte is found faster than two
        both += (chunk.count(b"\r\n") if back else 0) + (last == b"\r" and chunk[:1] == b"\n")
        returns, feeds, last = returns + back, feeds + chunk.count(b"\n"), chunk[-1:]
        own = chunk.isascii()
        plain &= own
        if utf8 and (between or not own):
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError:
                utf8 = False
            between = bool(decoder.getstate()[0])
    counts = {"\r\n": both, "\n": feeds - both, "\r": returns - both}
    return Scan(plain, utf8 and not between, [end for end, count in counts.items() if count])


def _as_utf8(path: Path, name: str, encoding: str, scratch: Path) -> tuple[Path, str]:
    for tried in (encoding, "latin-1") if encoding == "cp1252" else (encoding,):
        target = _fresh(scratch)
        try:
            with path.open(encoding=tried, newline="") as source, target.open("w", encoding="utf-8", newline="") as out:
                while chunk := source.read(CHUNK_BYTES):
                    out.write(chunk)
        except (UnicodeError, LookupError):
            continue
        return target, tried
    hint = "save it as UTF-8, or say another `encoding` in the spec's source"
    raise InvalidData(f"{name} is not {encoding} text", field="source.path", hint=hint)


def _plain(path: Path, dialect: Dialect, width: int, scratch: Path, lines: int) -> Path:
    """A copy that begins with the first row, without comments, each line ended in one way."""
    target = _fresh(scratch)
    within, left_out = False, 0
    with path.open(encoding="utf-8-sig", newline="") as source:
        for _ in range(lines):
            source.readline()
        with target.open("w", encoding="utf-8", newline="") as out:
            for line in source:
                if not within and dialect.comment and _is_comment(line, dialect, width):
                    left_out += 1
                    continue
                within ^= _quotes(line, dialect) % 2 == 1
                out.write(line.replace("\r\n", "\n").replace("\r", "\n"))
    if left_out:
        print(f"{left_out:,} lines after the header begin with {dialect.comment!r} and are no rows: passed over")
    return target


def _is_comment(line: str, dialect: Dialect, width: int) -> bool:
    """Not where it has the header's number of fields, or goes on in quotes: then a row's first value begins so."""
    if not line.startswith(dialect.comment):
        return False
    if _quotes(line, dialect) % 2 and re.search(f"{re.escape(dialect.delimiter)} *{dialect.quote}", line):
        return False
    return len(next(dialects.rows(iter([line]), dialect), ())) != width


def _quotes(line: str, dialect: Dialect) -> int:
    if dialect.escape != dialect.quote:
        line = line.replace(dialect.escape + dialect.quote, "")
    return line.count(dialect.quote)
