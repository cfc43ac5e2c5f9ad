"""Numbers that are infinite: read as missing, and said."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import duckdb
import pyarrow as pa

from activities.compute.data import rules
from activities.compute.data.checking import AT_ONCE
from activities.compute.data.files import Opened
from activities.compute.data.looked import Looked, ask
from everloop.reading import Changed, ReadColumn


def with_infinite(  # noqa: PLR0917
    changed: Sequence[Changed],
    files: Sequence[Opened],
    looked: Sequence[Mapping[str, Looked]],
    columns: Sequence[Mapping[str, ReadColumn]],
    finite: Mapping[int, Collection[str]],
    duck: duckdb.DuckDBPyConnection,
) -> list[Changed]:
    """*changed*, in the order of the columns, with the infinite numbers among the texts read as missing.

    *finite*: columns of a file, by its place, that are known to hold none.
    """
    found: dict[str, Counter[str]] = {}
    for place, (file, own, read) in enumerate(zip(files, looked, columns, strict=True)):
        asked = {name: column for name, column in read.items() if name not in finite.get(place, ())}
        for name, text, count in _infinite(file, own, asked, duck):
            found.setdefault(name, Counter())[text] += count
    known = {change.column: change for change in changed}
    for name, texts in found.items():
        change = known.get(name, Changed(column=name))
        both = Counter(change.texts) + texts
        more = {"missing": change.missing + texts.total(), "texts": dict(both.most_common())}
        known[name] = change.model_copy(update=more)
    return [known[name] for name in columns[0] if name in known]


def _infinite(
    file: Opened, looked: Mapping[str, Looked], columns: Mapping[str, ReadColumn], duck: duckdb.DuckDBPyConnection
) -> Iterator[tuple[str, str, int]]:
    numbers = {
        name: number for name, column in columns.items() if (number := _number_of(file, looked[name], column)) != ""
    }
    names = list(numbers)
    for start in range(0, len(names), AT_ONCE):
        some = names[start : start + AT_ONCE]
        signs = [f"count(*) FILTER (WHERE {numbers[name]} = '{sign}inf')" for name in some for sign in ("", "-")]
        (answer,) = ask(file, f"SELECT {', '.join(signs)} FROM {{rows}}", duck)
        for place, count in enumerate(answer):
            if int(str(count)):
                yield some[place // 2], "-inf" if place % 2 else "inf", int(str(count))


def _number_of(file: Opened, looked: Looked, column: ReadColumn) -> str:
    """A cell as a float, in SQL; nothing where it cannot be an infinite one."""
    if column.type != "number" or column.scale is not None or column.thousands:
        return ""
    x = f"c{looked.place}"
    if looked.textual:
        return f"TRY_CAST({rules.plain(rules.trimmed(x, column, file.odd_blanks), column)} AS DOUBLE)"
    return f"CAST({x} AS DOUBLE)" if looked.kind is not None and pa.types.is_floating(looked.kind) else ""
