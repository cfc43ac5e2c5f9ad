"""Windows of shuffled flights, of which none has moved: what is said to have drifted, is a false alarm."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

WINDOWS, WINDOW_ROWS = 20, 1000


def streams(chosen: Iterable[int]) -> dict[str, float]:
    """Counts over the windows of these streams: of columns, and of windows in which something is said to be over."""
    from activities.compute.drift import Pair, judge
    from activities.compute.measures import measures_of
    from everloop.records import Field, Signature
    from everloop.specs import Monitor
    from examples.flights import FEATURES, load

    table = pd.concat(load(60_000, 0).values())[list(FEATURES)]
    numeric = [name for name in FEATURES if table[name].dtype != object]
    fields = tuple(
        Field(name=name, kind="number" if name in numeric else "category", known=("a",)) for name in FEATURES
    )
    signature = Signature(task="binary", fields=fields, target="y")
    monitor = Monitor(share=0.4)
    counted = dict.fromkeys(("windows", "asked", "columns", "drifted", "beside", "broken"), 0.0)
    for stream in chosen:
        rows = table.sample(len(table), random_state=stream)
        sides = {name: rows[name].to_numpy(float if name in numeric else object) for name in FEATURES}
        sides = {name: side if name in numeric else np.where(pd.isna(side), "", side) for name, side in sides.items()}
        reference = {name: side[: -WINDOWS * WINDOW_ROWS] for name, side in sides.items()}
        for number in range(WINDOWS):
            at = len(rows) - (number + 1) * WINDOW_ROWS
            now = {name: side[at : at + WINDOW_ROWS] for name, side in sides.items()}
            found, _ = judge([Pair(name, name in numeric, reference[name], now[name]) for name in FEATURES])
            measures, breaks = measures_of(signature, reference, now, monitor)
            moved = sum(each.drifted for each in found)
            counted["windows"] += 1
            counted["asked"] += len(found)
            counted["columns"] += moved
            counted["drifted"] += moved / len(found) >= monitor.share
            counted["beside"] += any(measure.over for measure in measures)
            counted["broken"] += bool(breaks)
    return counted
