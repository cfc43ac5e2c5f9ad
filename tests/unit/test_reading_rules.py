"""One verdict in every spelling and at every door: the rules in Python and in SQL say the same of each text."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from activities.compute.data import rules
from activities.compute.data.engine import connection
from everloop.reading import ReadColumn
from everloop.texts import NotAsReadError, is_missing, value_of

TEXTS = [
    *[
        "",
        " ",
        "0",
        "-0",
        "7",
        "+7",
        "007",
        "-07",
        " 27",
        "27 ",
        "1_000",
        "1e3",
        "1E-3",
        "1e",
        ".5",
        "5.",
        "--5",
        "1 2",
    ],
    *["12.5", "12,5", "1.234", "1,234", "1.234,5", "1,234.5", "1 234", "1\u00a0234,5", "1\u202f234", "1'234.5"],
    *["9223372036854775807", "9223372036854775808", "-9223372036854775808", "1234567890123456002", "12.0", "3."],
    *["inf", "-Infinity", "nan", "NaN", "-nan", "NA", "None", "?", "-", ".", "null", "n/a", "0x1F", "1f", "1e400"],
    *["12,5 %", "$1,200", "$-5", "-$5", "5 €", "TRUE", "False", "true ", "yes", "1", "t", "T"],
    *[
        "2024-02-29",
        "2023-02-29",
        "2024-02-30",
        "2024-1-1",
        "2024-01-01 24:00",
        "2024-01-01T10:00",
        "2024-01-01 10:00:60",
    ],
    *["2024-01-01T10:00:00Z", "2024-01-01 10:00:00 UTC", "2024-01-01 10:00:00GMT", "2024-01-01T10:00:00+0530"],
    *["2024-01-01 10:00:00 +02:00", "2024-01-01T10:00:00.123456789-05", "9999-12-31T23:59:59-05:00"],
    *["0001-01-01T00:00:00+01:00", "2024-06-01T10:00:00+02", "0000-01-01", "2024-01-01T10"],
    *["30.02.2024", "31.04.2024", "29.02.2023", "29.02.2024", "31.05.23", "1.5.2024", "31.05.2023 3:05", "01.13.2024"],
    *["03/04/2013", "13/04/2013", "3/4/2013 3:05 PM", "5-JAN-2024", "05-Jan-24", "Jan 5, 2024", "5 Jan 2024"],
    *["Nurse", " Nurse", "\tNurse\n", "naïve", "客户", "a'b", "\\"],
]
COLUMNS = {
    "integer": ReadColumn(name="c", type="integer"),
    "number": ReadColumn(name="c", type="number"),
    "comma": ReadColumn(name="c", type="number", decimal=",", thousands="."),
    "blank": ReadColumn(name="c", type="number", decimal=",", thousands=" "),
    "apostrophe": ReadColumn(name="c", type="number", thousands="'"),
    "declared number": ReadColumn(name="c", type="number", declared=True),
    "declared integer": ReadColumn(name="c", type="integer", declared=True),
    "dollars": ReadColumn(name="c", type="number", unit="$", thousands=",", declared=True),
    "shares": ReadColumn(name="c", type="number", unit="%", decimal=",", declared=True),
    "boolean": ReadColumn(name="c", type="boolean"),
    "declared boolean": ReadColumn(name="c", type="boolean", declared=True),
    "iso": ReadColumn(name="c", type="datetime"),
    "german days": ReadColumn(name="c", type="datetime", format=("%d.%m.%Y", "%d.%m.%Y %H:%M", "%d.%m.%y")),
    "american days": ReadColumn(name="c", type="datetime", format=("%m/%d/%Y", "%m/%d/%Y %I:%M %p")),
    "other days": ReadColumn(
        name="c", type="datetime", format=("%d/%m/%Y", "%d-%b-%Y", "%d-%b-%y", "%b %d, %Y", "%d %b %Y")
    ),
    "text": ReadColumn(name="c", type="text"),
    "untrimmed": ReadColumn(name="c", type="text", trim=False),
}


def in_python(text: str, column: ReadColumn) -> Any:
    try:
        found = value_of(text, column)
    except NotAsReadError:
        return "no value"
    return float(found) if column.type == "number" and found is not None else found


def in_sql(texts: list[str], column: ReadColumn, folder: Path) -> list[Any]:
    t = "t"
    trimmed_ones = f"SELECT {rules.trimmed('x', column)} t FROM given"
    query = f"SELECT {rules.fits(t, column)}, {rules.value(t, column)}, t FROM ({trimmed_ones})"
    with connection(folder) as duck:
        duck.execute("CREATE TABLE given (x VARCHAR)")
        duck.executemany("INSERT INTO given VALUES (?)", [[text] for text in texts])
        rows = duck.execute(query).fetchall()
    found = []
    for fit, value, text in rows:
        if is_missing(text, column):
            found.append(None)
        elif not fit:
            found.append("no value")
        else:
            found.append(value.astimezone(UTC) if isinstance(value, datetime) else value)
    return found


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("missing", [(), ("NA", "NaN", "nan", "?", "-")])
def test_the_rules_in_sql_and_in_python_give_one_verdict(tmp_path: Path, name: str, missing: tuple[str, ...]) -> None:
    column = COLUMNS[name].model_copy(update={"missing": missing})

    told = in_sql(TEXTS, column, tmp_path)

    different = {
        text: (one, other)
        for text, one, other in zip(TEXTS, [in_python(text, column) for text in TEXTS], told, strict=True)
        if one != other
    }
    assert different == {}
    assert "no value" in told or column.type == "text"  # the texts try the rule
