"""A point that may stand between thousands: said where another column of the table has a decimal comma."""

import re
from collections.abc import Mapping, Sequence

from activities.compute.data.looked import Looked
from everloop.reading import Changed, ReadColumn
from everloop.specs import ColumnReading

THREE = re.compile(r"[+-]?[1-9]\d{0,2}\.\d{3}")


def with_points(
    changed: Sequence[Changed],
    looked: Sequence[Mapping[str, Looked]],
    columns: Sequence[Mapping[str, ReadColumn]],
    asked: Mapping[str, ColumnReading],
) -> list[Changed]:
    """*changed*, in the order of the columns, with a doubt on numbers whose every point is before three digits."""
    comma = next((name for read in columns for name, column in read.items() if column.decimal == ","), None)
    if comma is None:
        return list(changed)
    known = {change.column: change for change in changed}
    for name, column in columns[0].items():
        said = asked.get(name)
        if column.type != "number" or column.decimal != "." or (said and said.decimal):
            continue
        points = [text.strip() for each in looked for text in each[name].texts if "." in text]
        if points and all(THREE.fullmatch(text) for text in points):
            text = min(points)
            beside = f"`{name}` has {text!r} with a decimal point, `{comma}` a decimal comma"
            doubt = f"{beside}: say `decimal: ','` if it means {text.replace('.', '')}, `decimal: '.'` if not"
            known[name] = known.get(name, Changed(column=name)).model_copy(update={"doubt": doubt})
    return [known[name] for name in columns[0] if name in known]
