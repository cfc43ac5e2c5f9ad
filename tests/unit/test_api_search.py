"""A search is shown as the tables have it: leaders first, its course, what mattered, and a button that ends it."""

import io
import math
import random
import re
from datetime import timedelta
from pathlib import Path

import pytest
from rich.console import Console

from api.app import create_app
from api.search import drawn
from everloop import console
from everloop.client import Client, load_spec
from everloop.client.search import searching
from everloop.errors import NotFound, Unavailable
from everloop.specs import checked
from everloop.store import StudyRow, TrialRow
from tests import api_parts as parts
from tests import stores

NASTY = "</script><script>alert(1)</script>"
FAMILIES = ("lightgbm", "xgboost", "linear")


def study(lifecycle, *, trials, metric="log_loss", state="running", **changes):
    """A search with so many trials: the nearer `learning_rate` is to 0.1 the better, and lightgbm beats the others."""
    began = parts.NOW - timedelta(seconds=trials + 5)
    values = {
        "id": f"study-of-{lifecycle}", "lifecycle": lifecycle, "state": state, "metric": metric, "sampler": "tpe",
        "pruner": "median", "families": list(FAMILIES), "seconds": 60.0, "spent_seconds": float(trials),
        "told": trials, "sentence": f"{trials} trials, 31 s left", "started_at": began, "updated_at": parts.NOW,
    }  # fmt: skip
    return StudyRow(**(values | changes)), [trial(f"study-of-{lifecycle}", n, began, metric) for n in range(trials)]


def trial(of, number, began, metric="log_loss"):
    draw = random.Random(number)
    family, rate = FAMILIES[number % 3], 10 ** draw.uniform(-3, 0)
    loss = 0.4 + 0.05 * FAMILIES.index(family) + 0.05 * abs(math.log10(rate) + 1) + draw.gauss(0, 0.004)
    state = "failed" if number == 4 else "pruned" if number % 7 == 6 else "complete"
    value = (1 - loss if metric == "auc" else loss) if state == "complete" else None
    record = {
        "parameters": {} if number < 3 else {"learning_rate": rate, "num_leaves": draw.randint(4, 255), "extra": True},
        "origin": "portfolio" if number < 3 else "sampler",
        "intermediates": [(step, loss + 0.3 / step) for step in range(1, 3 if state == "pruned" else 6)],
        "losses": [loss] * 5, "seconds": 1.0, "device": "cpu0", "error": NASTY if state == "failed" else "",
    }  # fmt: skip
    at = began + timedelta(seconds=number + 1)
    return TrialRow(study=of, number=number, family=family, state=state, value=value, seconds=1.0, at=at, record=record)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    settings = parts.settings_in(tmp_path_factory.mktemp("search"))
    store = stores.migrated(settings.database)
    with store.write() as session:
        session.add(parts.lifecycle("searches", model="credit"))
        session.add(parts.lifecycle("plain", model="credit"))
        session.add(parts.lifecycle("found", model="credit", status="released"))
        session.add(parts.stage("train", 3, "running", lifecycle="searches"))
        for row, trials in (study("searches", trials=60), study("found", trials=30, metric="auc", state="no_gain")):
            session.add(row)
            session.add_all(trials)
    with parts.running(create_app(settings), settings.port_base) as url, parts.client_of(settings, url) as client:
        yield settings, store, client


def test_the_best_trial_comes_first_whatever_the_metrics_direction(served):
    _, _, client = served
    for name in ("searches", "found"):
        rows = client.get(f"/api/v1/lifecycles/{name}/trials").json()["items"]
        search = client.get(f"/api/v1/lifecycles/{name}/search").json()
        values = [row["value"] for row in rows if row["rank"]]

        assert values == sorted(values, reverse=search["higher_is_better"])
        assert [row["rank"] for row in rows[: len(values)]] == list(range(1, len(values) + 1))
        assert all(row["value"] is None and row["rank"] is None for row in rows[len(values) :])
        assert search["leaders"] == rows[:5]
        assert sum(search["states"].values()) == sum(search["families"].values()) == search["trials"] == len(rows)


def test_trials_are_asked_for_by_family_state_and_order(served):
    _, _, client = served

    linear = client.get("/api/v1/lifecycles/searches/trials?family=linear&order=number").json()["items"]
    pruned = client.get("/api/v1/lifecycles/searches/trials?state=pruned&order=newest&limit=3").json()["items"]

    assert [row["number"] for row in linear] == list(range(2, 60, 3))
    assert [row["number"] for row in pruned] == [55, 48, 41]
    assert client.get("/api/v1/lifecycles/searches/trials?order=worst").status_code == 422
    missing = client.get("/api/v1/lifecycles/plain/trials")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    assert "no `search:`" in missing.json()["hint"]


def test_the_family_and_the_rate_are_said_to_have_made_the_difference(served):
    _, _, client = served

    told = client.get("/api/v1/lifecycles/searches/search").json()["importance"]

    assert (told[0]["family"], told[0]["parameter"], told[0]["best"]) == ("", "family", "lightgbm")
    first = {}
    for each in told[1:]:
        first.setdefault(each["family"], each["parameter"])
    assert set(first.values()) == {"learning_rate"}


def test_the_page_shows_leaders_course_and_a_button_and_runs_no_script(served):
    _, _, client = served
    answer = client.get("/search/searches")
    page = answer.text

    assert answer.headers["refresh"] == "3"
    assert "refresh" not in client.get("/search/searches?still=true").headers
    assert page.count('class="trial s') >= 50
    assert 'formaction="/lifecycles/searches/take_best"' in page
    assert "everloop take-best searches" in page
    assert "When the best got better" in page and "How trials learned" in page
    assert "<script" not in page
    assert re.search(r"&lt;script&gt;", client.get("/search/searches?state=failed").text)
    over = client.get("/search/found").text
    assert "take_best" not in over
    assert client.get("/search/plain").status_code == 404


def test_the_lifecycles_page_and_answer_have_the_leaders(served):
    _, _, client = served

    page = client.get("/lifecycles/searches").text
    found = client.get("/api/v1/lifecycles/searches").json()

    assert "The search" in page and 'href="/search/searches"' in page
    assert found["search"]["sentence"] == "60 trials, 31 s left"
    assert found["progress"]["sentence"] == "60 trials, 31 s left"
    assert len(found["search"]["leaders"]) == 5
    assert client.get("/api/v1/lifecycles/plain").json()["search"] is None


def test_one_trial_that_went_astray_does_not_squeeze_the_picture():
    began = parts.NOW
    shown = [trial("study", n, began) for n in range(40) if n % 7 != 6 and n != 4]
    shown[5].value = 1e9
    views = [reading_of(row) for row in shown]

    chart = drawn.over_time(views, began, rising=False, name="log_loss")

    assert chart.top < 1
    assert [dot.beyond for dot in chart.dots].count(True) < len(views) / 8
    assert drawn.over_time(views[:1], began, rising=False, name="log_loss") is None
    gains = [each.value for each in drawn.gains(views, rising=False)]
    assert gains == sorted(gains, reverse=True)
    assert gains[-1] == min(row.value for row in shown)


def reading_of(row):
    from api.search.reading import _trial

    return _trial(row, None)


def test_the_client_and_the_terminal_tell_the_same(served):
    settings, _, client = served
    with Client(
        str(client.base_url), parts.key_of(settings), settings.data_dir, serve_url="http://127.0.0.1:9"
    ) as mine:
        search = mine.searched("found")
        best = search.best(timeout=60)
        rows = search.trials(limit=3)
        text = printed(console.search(search.now(), rows))
        shown = printed(console.lifecycle(mine.show("searches")))
        assert mine.searched("plain").trials() == []
        with pytest.raises(NotFound):
            mine.trials("no-such")
        with pytest.raises(Unavailable, match="still searches"):
            mine.searched("searches").best(timeout=0)

    assert best["rank"] == 1 and best["family"] == "lightgbm"
    assert "which family" in text and "learning_rate" in text
    assert "everloop take-best searches" in shown


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({}, {"budget": {"time": 60.0, "trials": None}, "families": None}),
        ({"budget": "10min", "trials": 7}, {"budget": {"time": 600.0, "trials": 7}, "families": None}),
        ({"families": ["linear"]}, {"budget": {"time": 60.0, "trials": None}, "families": ("linear",)}),
    ],
)
def test_what_is_said_to_a_search_stands_over_the_spec(given, asked):
    changes = searching(parts.SPEC, given.get("budget"), given.get("trials"), given.get("families"))
    spec = checked(load_spec(parts.SPEC, changes))

    assert spec.search is not None
    assert spec.search.budget.seconds == asked["budget"]["time"]
    assert spec.search.budget.trials == asked["budget"]["trials"]
    assert spec.search.families == asked["families"]


def printed(shown):
    out = Console(file=io.StringIO(), width=140)
    out.print(shown)
    return out.file.getvalue()


def test_the_example_is_a_spec():
    spec = checked(load_spec(Path(__file__).parents[2] / "examples" / "search.yaml"))

    assert spec.search is not None
    assert spec.search.families == ("lightgbm", "linear", "forest")
