"""A plain file is converted in the pass that holds it against its reading: to the same rows as by the long way."""

import io
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from activities.compute.data import reading
from activities.compute.data.conversion import attempts, converted
from activities.compute.data.engine import connection
from activities.compute.data.files import open_file
from everloop.artifacts import Artifacts
from everloop.errors import InvalidData
from everloop.specs import ColumnReading

ROWS = 3000
"""More than the first decision is made from."""
HEADER = "whole,part,long,power,flag,day,month,moment,plan,note,key,none,y"


def line(row: int) -> str:
    day = f"{1 + row % 28:02}"
    cells = [row - 50, f"{row / 4}", repr(row / 7), f"{row or 1}e-07", ("true", "False")[row % 2]]
    cells += [f"2013-01-{day}", f"{day}.{1 + row % 12:02}.2013", f"2013-01-{day}T12:00:00.25+02:00"]
    cells += [("basic", "gold")[row % 2], f" word {row} ", f"{row:019}", "", row % 2]
    if row % 10 == 3:  # some are missing
        cells = ["" if place not in {10, 12} else cell for place, cell in enumerate(cells)]
    return ",".join(map(str, cells))


def settled(folder: Path, text: str, *, outright: bool, name: str = "t.csv") -> tuple[Any, bytes, bool, list[int]]:
    """How the text is read, its rows in Parquet, whether they were written by the way, and missing values by column."""
    scratch = folder / ("outright" if outright else "long")
    scratch.mkdir()
    path = scratch / name
    path.write_text(text, encoding="utf-8", newline="")
    artifacts = Artifacts(str(scratch / "artifacts"))
    blob = artifacts.put_file(path, name)
    asked = {"key": ColumnReading(type="identifier")}
    with connection(scratch) as duck, ExitStack() as until:
        files = [open_file(path, name, scratch, {"y"}, None, duck)]
        target = attempts(files, [blob], artifacts, scratch) if outright else None
        read = reading.settle(files, asked, duck, target)
        kept = converted(read, 0, blob, artifacts, scratch, duck, until)
        made = bool(read.made) and read.made[0].columns == read.columns[0]
        missing = [each.missing for each in read.looked[0].values()]
        return (read.reading, read.rows, read.changed), kept.path.read_bytes(), made, missing


def test_a_plain_file_is_written_in_one_pass_with_the_same_bytes(tmp_path: Path) -> None:
    text = HEADER + "\n" + "".join(f"{line(row)}\n" for row in range(ROWS))

    read, rows, made, missing = settled(tmp_path, text, outright=True)
    long_read, long_rows, by_the_way, long_missing = settled(tmp_path, text, outright=False)

    assert made
    assert not by_the_way
    assert read == long_read
    assert missing == long_missing
    assert rows == long_rows
    kinds = [column.type for column in read[0].columns]
    assert kinds == [
        *("integer", "number", "number", "number", "boolean", "datetime", "datetime", "datetime"),
        *("category", "category", "identifier", "category", "integer"),
    ]


ODD = {
    "a text that means missing among texts": ("plan", "NA"),
    "one in quotes": ("plan", '"NA"'),
    "one among numbers": ("part", "NA"),
    "a fraction among whole numbers": ("whole", "1.5"),
    "a text among whole numbers": ("whole", "many"),
    "a decimal comma": ("part", '"1,5"'),
    "a code among numbers": ("part", "007"),
    "a code after a blank": ("part", " 007"),
    "a number after a blank": ("part", " 12.5 "),
    "a number with an underscore": ("part", "1_000"),
    "more digits than a float holds": ("part", "0.12345678901234567890"),
    "as many digits as one holds, in another way": ("part", "12.50000000000000000000"),
    "19 digits": ("part", "1234567890123456789"),
    "infinity": ("part", "inf"),
    "not a number": ("part", "-nan"),
    "beyond 64 bits": ("whole", "9223372036854775808"),
    "a boolean of another kind": ("flag", "maybe"),
    "no day": ("day", "2013-02-30"),
    "the year 0001 with a zone": ("moment", "0001-01-01T00:00:00+02:00"),
    "another layout of days": ("month", "31.12.13"),
    "a value in an empty column": ("none", "7"),
    "a tab around a text": ("plan", "\tgold\t"),
    "a missing key": ("key", "null"),
}


@pytest.mark.parametrize("odd", ODD, ids=[name.replace(" ", "-") for name in ODD])
def test_what_only_the_last_row_says_is_read_as_by_the_long_way(tmp_path: Path, odd: str) -> None:
    column, value = ODD[odd]
    cells = [value if name == column else "" for name in HEADER.split(",")]
    cells[-1] = "1"
    text = HEADER + "\n" + "".join(f"{line(row)}\n" for row in range(ROWS)) + ",".join(cells) + "\n"

    read, rows, _, missing = settled(tmp_path, text, outright=True)
    long_read, long_rows, _, long_missing = settled(tmp_path, text, outright=False)

    assert read == long_read
    assert missing == long_missing
    assert rows == long_rows


def test_a_code_after_a_blank_makes_its_column_text(tmp_path: Path) -> None:
    text = "x,y\n" + "".join(f"{row / 4},{row % 2}\n" for row in range(ROWS)) + " 007,1\n"

    (read, _, _), rows, _, _ = settled(tmp_path, text, outright=True)

    assert read.columns[0].type == "category"
    assert pyarrow.parquet.read_table(io.BytesIO(rows))["x"][-1].as_py() == "007"


def test_a_row_that_is_too_long_is_named_as_ever(tmp_path: Path) -> None:
    text = "x,y\n" + "".join(f"{row},{row % 2}\n" for row in range(ROWS)) + "1,2,3\n"

    with pytest.raises(InvalidData, match=r"row 3,002 .* has 3 fields where the header has 2"):
        settled(tmp_path, text, outright=True)
