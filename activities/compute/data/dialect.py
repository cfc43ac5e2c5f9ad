"""How a text file is laid out, by DuckDB's sniffer: what `everloop.dialect` then holds against the file's header."""

from pathlib import Path

import duckdb

from activities.compute.data.engine import text as quoted
from everloop.dialect import ODD_DELIMITERS, Layout

NOTHING = ("", "(empty)")
COMMENTS = ("#",)


def sniffed(path: Path, duck: duckdb.DuckDBPyConnection, delimiter: str = "") -> list[Layout]:
    """How the UTF-8 text at *path* may be laid out, most likely first; nothing where the sniffer cannot tell.

    Delimiters that it does not try by itself are tried where it finds one column. *delimiter*: said by the file.
    """
    if delimiter:
        return _asked(path, duck, delimiter)
    # Rows of another length, which are for the reader to name, hide the layout from the strict sniffer.
    found = _asked(path, duck, "") or _asked(path, duck, "", leniently=True)
    for odd in ODD_DELIMITERS if not found else "":
        found += _asked(path, duck, odd)
    return found


def _asked(path: Path, duck: duckdb.DuckDBPyConnection, delimiter: str, *, leniently: bool = False) -> list[Layout]:
    more = f", delim = {quoted(delimiter)}" if delimiter else ""
    query = (
        "SELECT Delimiter, Quote, Escape, Comment, len(Columns) FROM "
        f"sniff_csv({quoted(str(path))}, all_varchar = true, ignore_errors = {leniently}, compression = 'none'{more})"
    )
    try:
        (answer,) = duck.execute(query).fetchall()
    except (duckdb.Error, ValueError):
        return []
    between, quote, escape, comment = (None if value in NOTHING else str(value) for value in answer[:4])
    if int(answer[4]) < 2 or between is None:  # noqa: PLR2004  # one column: it found nothing
        return []
    return [
        Layout(
            delimiter=between,
            quote=quote or '"',
            backslash=escape == "\\",
            comment=comment if comment in COMMENTS else "",
        )
    ]
