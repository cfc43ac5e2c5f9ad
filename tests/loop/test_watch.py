"""The watch on the whole stack: labels, performance, broken data, by command line and page."""

import json
import random
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from everloop.client import Client
from everloop.errors import Invalid
from everloop.settings import Settings
from tests.loop.test_stack import everloop

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
ROWS = 400
MONITOR = {"every": "PT1S", "window": "day", "idle": "PT1S", "share": 0.9, "minimum_rows": 100, "also": ["performance"]}


def table(rows: int, start: datetime, seed: int, *, turned: bool = False) -> list[dict[str, Any]]:
    """Customers over a day: the old ones leave; *turned*: the young ones do."""
    draw = random.Random(seed)
    made = []
    for place in range(rows):
        age = draw.randrange(18, 80)
        left = (age + draw.gauss(0, 12) > 50) != turned
        made.append(
            {
                "id": f"{seed}-{place:04}",
                "at": (start + place * DAY / rows).isoformat(),
                "age": age,
                "income": round(draw.lognormvariate(7, 0.5)),
                "plan": draw.choice(["basic", "family", "pro"]),
                "left": int(left),
            }
        )
    return made


def csv(rows: list[dict[str, Any]], *columns: str) -> str:
    chosen = columns or tuple(rows[0])
    return "\n".join([",".join(chosen), *(",".join(str(row[name]) for name in chosen) for row in rows)]) + "\n"


def eventually(look: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.2)
    return found


def trained(client: Client, folder: Path, model: str, **monitor: Any) -> None:
    (folder / "churn.csv").write_text(csv(table(1500, START - 30 * DAY, 0)))
    spec = {
        "model": model, "task": "binary", "target": "left", "time": "at", "key": "id",
        "source": {"path": str(folder / "churn.csv")}, "training": {"rounds": 40}, "monitor": MONITOR | monitor,
    }  # fmt: skip
    lifecycle = client.submit(spec)["id"]
    client.wait(lifecycle, until="gate")
    client.approve(lifecycle)
    assert client.wait(lifecycle)["status"] == "released"
    eventually(lambda: any(each["model"] == model and each["version"] for each in client.serving()["models"]))


def sent(client: Client, model: str, rows: list[dict[str, Any]], **changed: Any) -> None:
    """As traffic, at the rows' own event times."""
    client.predict(model, [{name: value for name, value in row.items() if name != "left"} | changed for row in rows])


def check_of(client: Client, model: str, day: int) -> dict[str, Any]:
    start = f"{START + day * DAY:%Y-%m-%d}"
    checks = lambda: [one for one in client.model(model)["checks"] if one["window_start"].startswith(start)]  # noqa: E731
    return dict(eventually(checks)[0])


@pytest.fixture(scope="module")
def client(shared: Settings) -> Iterator[Client]:
    with Client(data_dir=shared.data_dir) as opened:
        yield opened


@pytest.fixture(scope="module")
def watched(client: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    trained(client, tmp_path_factory.mktemp("watched"), "watched")
    return "watched"


def test_labels_say_how_well_a_window_was_answered(
    shared: Settings, client: Client, watched: str, tmp_path: Path
) -> None:
    rows = table(ROWS, START, 1)
    early = [{"key": row["id"], "label": row["left"]} for row in rows[:50]]
    assert client.label(watched, early)["kept"] == 50  # before there is any prediction
    sent(client, watched, rows)
    assert check_of(client, watched, 0)["verdict"] == "quiet"
    file = tmp_path / "outcomes.csv"
    file.write_text(csv(rows, "id", "left"))

    told = everloop(shared, "labels", watched, str(file))

    assert f"{ROWS} labels are kept" in told.stdout, told.stderr
    seen = eventually(lambda: (found := client.labels(watched))["joined"] == ROWS and found)
    (window,) = seen["performance"]
    assert (window["rows"], window["labelled"], window["metric"], window["verdict"]) == (ROWS, ROWS, "auc", "")
    assert window["low"] < window["value"] < window["high"]
    assert abs(window["value"] - window["expected"]) < 0.08
    assert (seen["labels"], seen["waiting"], seen["corrected"]) == (ROWS, 0, 50)
    shown = everloop(shared, "labels", watched).stdout
    assert "auc" in shown
    assert "400 rows have a label" in shown
    page = client._http.get(f"{client.url}/models/{watched}").text
    assert "Columns then and now" in page
    assert 'class="interval"' in page

    with pytest.raises(Invalid, match=r"row 1: .key. is the float 7\.0, which is no exact name"):
        client.label(watched, [{"key": "7", "label": 1}, {"key": 7.0, "label": 1}])
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("id,left\na,1\nb,perhaps\n")
    refused = everloop(shared, "labels", watched, str(wrong))
    assert refused.returncode == 1
    assert "row 1: 'left' is 'perhaps'" in refused.stderr
    assert client.labels(watched)["unread_bytes"] == 0  # all or none


def test_a_window_that_is_answered_worse_is_retrained_once_its_labels_come(client: Client, watched: str) -> None:
    rows = table(ROWS, START + DAY, 2, turned=True)
    sent(client, watched, rows)
    assert check_of(client, watched, 1)["verdict"] == "quiet"

    client.label(watched, [{"key": row["id"], "label": row["left"]} for row in rows])

    row = eventually(lambda: [one for one in client.labels(watched)["performance"] if one["verdict"] == "retrain"])[0]
    assert row["window_start"].startswith("2026-01-02")
    assert row["high"] < row["expected"]
    ended = client.wait(row["lifecycle"])
    assert ended["status"] == "not_better"  # the source has no new rows
    assert "test rows are new to version 1" in ended["reason"]


def test_broken_data_is_in_quarantine_until_a_person_says_that_it_is_mended(
    shared: Settings, client: Client, watched: str, browser: Any
) -> None:
    sent(client, watched, table(ROWS, START + 2 * DAY, 3), age=None)
    check = check_of(client, watched, 2)
    assert check["verdict"] == "quarantined"
    assert "'age': all values are missing; 0.0% were in training" in check["reason"]

    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(json.loads(everloop(shared, "login", "--json").stdout)["url"])
    page.goto(f"{shared.api_url}/models/{watched}")
    assert "The data has been in quarantine" in page.get_by_role("alert").inner_text()
    page.get_by_role("button", name="It is mended").click()
    assert "quarantine since" not in page.inner_text("main")
    monitor = client.model(watched)["monitor"]
    assert (monitor["quarantine"], monitor["quarantined_at"]) == ([], None)

    incomes = table(ROWS, START + 3 * DAY, 4)
    sent(client, watched, [row | {"income": row["income"] * 100} for row in incomes])  # in cents
    assert re.search("'income': .*100 times", check_of(client, watched, 3)["reason"])
    told = everloop(shared, "lift-quarantine", watched, "--accept")
    assert "the next window over the threshold may cause a retraining" in told.stdout, told.stderr
    incomes = table(ROWS, START + 4 * DAY, 5)
    sent(client, watched, [row | {"income": row["income"] * 100} for row in incomes])
    assert check_of(client, watched, 4)["verdict"] == "quiet"  # it is meant to be so
