"""What the rules changed: texts read as missing, values that are not as declared."""

from collections import Counter
from collections.abc import Mapping, Sequence

import duckdb

from activities.compute.data import rules, typed
from activities.compute.data.files import Opened
from activities.compute.data.looked import Looked, ask
from everloop.errors import InvalidData, naming
from everloop.reading import Changed, ReadColumn
from everloop.texts import NotAsReadError, value_of

MOST_REJECTED = 0.05
"""Share of a declared column's values that may be no values of it."""


EXAMPLES = 3


MOST_TEXTS = 8
"""Texts that mean missing, listed by column."""


def changes(
    files: Sequence[Opened],
    looked: Sequence[Mapping[str, Looked]],
    columns: Sequence[Mapping[str, ReadColumn]],
    rows: Sequence[int],
    duck: duckdb.DuckDBPyConnection,
) -> list[Changed]:
    found = []
    for name in columns[0]:
        with naming(column=name):
            change = _change(files, [each[name] for each in looked], [each[name] for each in columns], rows, duck)
        if change:
            found.append(change)
    return found


def _change(
    files: Sequence[Opened],
    own: Sequence[Looked],
    columns: Sequence[ReadColumn],
    rows: Sequence[int],
    duck: duckdb.DuckDBPyConnection,
) -> Changed | None:
    column = columns[0]
    texts: Counter[str] = Counter()
    for file, each, read in zip(files, own, columns, strict=True):
        if each.blanks:
            texts.update(_blank_texts(file, each, read, duck))
    rejected = sum(each.surprises for each in own) if column.declared else 0
    clipped = sum(each.clipped for each in own)
    if rejected:
        _check_rejected(column, own, rejected, rows)
    if not (texts or rejected or clipped):
        return None
    examples = sorted({text for each in own for text in each.texts if is_rejected(text, column)})
    return Changed(
        column=column.name,
        missing=sum(each.missing - each.blanks for each in own) + sum(texts.values()),
        texts=dict(texts.most_common(MOST_TEXTS)),
        rejected=rejected,
        examples=tuple(text[:40] for text in examples[:EXAMPLES]) if rejected else (),
        clipped=clipped,
    )


def is_rejected(text: str, column: ReadColumn) -> bool:
    try:
        value_of(text, column)
    except NotAsReadError:
        return True
    return False


def _check_rejected(column: ReadColumn, own: Sequence[Looked], rejected: int, rows: Sequence[int]) -> None:
    # `surprises` counts what is neither missing nor a value; more than a few mean that the declaration is wrong.
    texts = sorted({text for each in own for text in each.texts if is_rejected(text, column)})
    total = sum(rows) - sum(each.missing for each in own)
    if rejected > MOST_REJECTED * total:
        shown = ", ".join(repr(text[:40]) for text in texts[:EXAMPLES])
        message = (
            f"columns.{column.name}: {rejected:,} of {total:,} values are not as declared ({column.type}): {shown}"
        )
        hint = "change what the spec says of the column, or name those texts in its `missing`"
        raise InvalidData(message, field=f"columns.{column.name}", hint=hint)


def _blank_texts(file: Opened, looked: Looked, column: ReadColumn, duck: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """How often each text that means missing stands in a column."""
    kind = looked.kind
    text = typed.as_text(f"c{looked.place}", kind) if kind is not None else f"c{looked.place}"
    t = rules.trimmed(text, column, file.odd_blanks)
    query = f"SELECT {t}, count(*) FROM {{rows}} WHERE {rules.one_of(t, column.missing)} GROUP BY 1"
    found = {str(text): int(str(count)) for text, count in ask(file, query, duck)}
    if file.quoted_blanks and not column.quoted:  # those in quotes are meant
        relation = file.relation(nulls=True)
        for text, count in duck.execute(query.replace("{rows}", relation)).fetchall():
            found[text] -= count
    return {text: count for text, count in found.items() if count}
