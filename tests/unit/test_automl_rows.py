"""What `bench/automl.py` makes of rows that several sessions have left."""

from pathlib import Path
from typing import Any

import pytest

from bench.automl_rows import COLUMNS, OURS, PEERS, Results, judged, standing
from bench.dev_tables import SPLITS, TABLES


def row(tool: str, table: str, split: int, loss: float, **more: Any) -> dict[str, Any]:
    about = {"tool": tool, "table": table, "split": split, "budget_s": 60, "metric": "log_loss", "quiet": "yes"}
    took = {"search_s": 61.0, "row_ms": 0.2, "model_mib": 1.0, "commit": "abc", "machine": "a machine"}
    return about | took | {"loss": loss} | more


def added(path: Path, *rows: dict[str, Any]) -> Results:
    results = Results(path, 60, loud=False)
    for each in rows:
        results.add(each)
    return results


def test_a_write_that_was_killed_costs_its_own_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    added(path, row(OURS, "credit", 0, 0.4), row(OURS, "credit", 1, 0.5))
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])

    again = added(path, row(OURS, "credit", 2, 0.6))

    assert [(each["split"], each["loss"]) for each in again.rows()] == [("0", "0.4"), ("2", "0.6")]
    assert again.has(OURS, "credit", 0) and not again.has(OURS, "credit", 1)


def test_a_row_of_a_busy_machine_or_of_another_commit_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    added(path, row(OURS, "credit", 0, 0.4, quiet="no"), row(OURS, "credit", 1, 0.4), row("flaml_automl", "hpc", 0, 1))

    assert not Results(path, 60, loud=False).has(OURS, "credit", 0)
    assert Results(path, 60, loud=True).has(OURS, "credit", 0)
    later = Results(path, 60, loud=False, only_of="def")
    assert not later.has(OURS, "credit", 1)
    assert later.has("flaml_automl", "hpc", 0)  # a peer is the same at any commit of ours


def test_a_failed_peer_is_not_run_again_and_a_failed_search_is(tmp_path: Path) -> None:
    failed = {"loss": "", "error": "it did not end"}
    added(tmp_path / "rows.csv", row(OURS, "credit", 0, 0) | failed, row("flaml_automl", "credit", 0, 0) | failed)

    results = Results(tmp_path / "rows.csv", 60, loud=False)

    assert results.has("flaml_automl", "credit", 0) and not results.has(OURS, "credit", 0)


def everything(worse_on: int) -> list[dict[str, Any]]:
    """All rows; ours is a tenth worse than each peer on so many tables."""
    made = []
    for place, table in enumerate(TABLES):
        for split in range(SPLITS):
            made += [row(tool, table, split, 0.5 + 0.01 * split) for tool in PEERS]
            made.append(row(OURS, table, split, (0.5 + 0.01 * split) * (1.1 if place < worse_on else 1.0)))
    return [{name: str(each.get(name, "")) for name in COLUMNS} for each in made]


@pytest.mark.parametrize(("worse_on", "met"), [(0, True), (2, False), (3, False)])
def test_all_tables_are_judged_when_all_are_whole(worse_on: int, met: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert judged(everything(worse_on)) is met

    said = capsys.readouterr().out
    assert f"tables_among_the_best {8 - worse_on} goal 6 {'met' if worse_on <= 2 else 'missed'}" in said
    assert f"tables_worse_than_default {worse_on} goal 0" in said


def test_what_is_missing_is_said_and_nothing_is_judged_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [each for each in everything(0) if (each["tool"], each["table"]) != ("autogluon_tabular", "hpc")]
    rows = [each for each in rows if (each["tool"], each["table"], each["split"]) != (OURS, "ames", "2")]

    assert not judged(rows)

    said = capsys.readouterr().out
    assert "incomplete: hpc: autogluon_tabular 0 of 3" in said
    assert "incomplete: ames: everloop 2 of 3" in said
    assert "tables_among_the_best 6 incomplete: 6 of 8 tables are whole" in said
    assert "incomplete: of ours 23 of 24 searches" in said
    assert "tables_among_the_best 6 goal" not in said


def test_a_table_on_which_a_peer_failed_is_whole_without_it() -> None:
    rows = [each for each in everything(0) if (each["tool"], each["table"]) != ("flaml_automl", "hpc")]
    failed = {"tool": "flaml_automl", "table": "hpc", "split": "0", "loss": "", "error": "it did not end"}

    stands = standing([*rows, failed])

    assert stands.whole == list(TABLES)
    assert "flaml_automl" not in stands.losses["hpc"]
