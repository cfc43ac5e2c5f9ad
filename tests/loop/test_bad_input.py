"""Bad input through the real doors: each an error that names the field and what to do, and nothing half-written.

Every bad table is submitted while it is bad; each parks its lifecycle, and mending the source and `retry` is all
that is ever needed.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from sqlmodel import select

from everloop.client import Client
from everloop.errors import Conflict, EverloopError, Invalid
from everloop.settings import Settings
from everloop.store import LeaseRequestRow, Store, VersionRow
from tests.loop.test_stack import everloop

ROWS = 120
PARKED_SECONDS = 90


def table(rows: int = ROWS, target: Callable[[int], object] = lambda row: "no" if row % 3 else "yes") -> str:
    """A CSV of two features, a column without values, and a target."""
    lines = [f"{row * 37 % 101},{'red' if row % 3 else 'blue'},,{target(row)}" for row in range(rows)]
    return "\n".join(["age,colour,void,y", *lines, ""])


def good(place: Path) -> None:
    place.mkdir()
    (place / "a.csv").write_text(table())


def one(text: str) -> Callable[[Path], None]:
    def write(place: Path) -> None:
        place.mkdir()
        (place / "a.csv").write_text(text)

    return write


def another_schema(place: Path) -> None:
    good(place)
    (place / "b.csv").write_text(table().replace("age,colour", "age,color"))


class Bad(NamedTuple):
    """A source that cannot be learned from as it is."""

    write: Callable[[Path], None]
    error: str
    field: str
    says: str
    stage: str = "snapshot"
    spec: dict[str, Any] = {}  # noqa: RUF012  # never changed


BAD = {
    "vanished": Bad(good, "DatasetMissing", "source.path", "there is no file or folder"),
    "another-schema": Bad(another_schema, "SchemaMismatch", "colo", "b.csv"),
    "unknown-column": Bad(
        good, "InvalidSpec", "features.exclude", "no column 'agee'", spec={"features": {"exclude": ["agee"]}}
    ),
    "no-target": Bad(one(table().replace(",y\n", ",z\n")), "InvalidSpec", "target", "no column 'y'"),
    "empty": Bad(one(""), "InvalidData", "source.path", "a.csv is empty"),
    "header-only": Bad(one(table(0)), "InvalidData", "source.path", "a header but no rows"),
    "one-row": Bad(one(table(1)), "DatasetTooSmall", "source.path", "the data has 1 row"),
    "null-target": Bad(one(table(target=lambda _: "")), "TargetUnusable", "y", "no value in any row", "validate"),
    "constant-target": Bad(one(table(target=lambda _: "no")), "TargetUnusable", "y", "always 'no'", "validate"),
    "lonely-class": Bad(
        one(table(target=lambda row: "no" if row else "yes")), "TargetUnusable", "y", "one row of the class", "validate"
    ),
    "null-features": Bad(
        good, "InvalidData", "features", "it has no usable values", "prepare", {"features": {"include": ["void"]}}
    ),
}


def spec_of(place: Path, model: str, **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "task": "binary",
        "target": "y",
        "source": {"path": str(place)},
        "training": {"rounds": 5},
        "monitor": None,
    } | more


@pytest.fixture(scope="module")
def client(shared: Settings) -> Iterator[Client]:
    with Client(data_dir=shared.data_dir) as opened:
        yield opened


@pytest.fixture(scope="module")
def http(shared: Settings) -> Iterator[httpx.Client]:
    """What anybody may send who has a key."""
    key = (shared.keys_dir / "client.key").read_text().strip()
    with httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=30, trust_env=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


@pytest.fixture(scope="module")
def parked(client: Client, sources: Path) -> dict[str, dict[str, Any]]:
    """Each bad table's lifecycle, once it waits for a person. They wait for each other's slot meanwhile."""
    for name, bad in BAD.items():
        bad.write(sources / name)
        client.submit(spec_of(sources / name, name, **bad.spec), f"bad-{name}")
        if name == "vanished":
            shutil.rmtree(sources / name)  # after the submission is accepted
    return {name: client.wait(f"bad-{name}", until="gate", timeout=PARKED_SECONDS) for name in BAD}


def plain(text: str) -> str:
    """*text*, which must say what is wrong without a stack."""
    assert "Traceback" not in text
    assert 'File "' not in text
    return text


# --- what is parked ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BAD)
def test_a_bad_table_parks_its_lifecycle_and_says_what_to_do(
    parked: dict[str, dict[str, Any]], client: Client, http: httpx.Client, name: str
) -> None:
    bad, found = BAD[name], parked[name]

    assert (found["status"], found["stage"]) == ("needs_attention", bad.stage)
    error = found["error"]
    assert error["error"] == bad.error
    assert bad.field in error["field"]
    assert bad.says in error["message"]
    assert error["hint"]
    assert error["log_tail"]
    assert f"everloop retry bad-{name}" in found["wait"]
    plain(json.dumps(found))
    assert bad.says in plain(client.logs(f"bad-{name}"))
    assert bad.error in plain(client.logs(f"bad-{name}", bad.stage))
    page = http.get(f"{client.url}/lifecycles/bad-{name}")
    assert page.status_code == 200
    assert error["hint"][:10].split("'")[0] in plain(page.text)


def test_parked_lifecycles_hold_no_slot_and_have_made_no_version(
    parked: dict[str, dict[str, Any]], shared: Settings, client: Client
) -> None:
    store = Store(shared.database)
    with store.read() as session:
        held = session.exec(select(LeaseRequestRow).where(LeaseRequestRow.state != "done")).all()
        versions = session.exec(select(VersionRow)).all()
    store.close()

    assert [row.workflow_id for row in held if row.workflow_id.startswith("bad-")] == []
    assert [row.model for row in versions if row.model in BAD] == []
    assert [row["model"] for row in client.models() if row["model"] in BAD] == []


def test_the_command_line_shows_a_parked_lifecycle_and_its_log(
    parked: dict[str, dict[str, Any]], shared: Settings
) -> None:
    shown = everloop(shared, "show", "bad-no-target")
    logs = everloop(shared, "logs", "bad-no-target")

    assert shown.returncode == logs.returncode == 0, shown.stderr + logs.stderr
    assert "no column 'y'" in plain(shown.stdout)
    assert "everloop retry bad-no-target" in shown.stdout
    assert "no column 'y'" in plain(logs.stdout)


# --- retry, skip, abort -----------------------------------------------------------------------------


def test_skip_is_refused_where_the_next_stage_needs_the_result(
    parked: dict[str, dict[str, Any]], shared: Settings
) -> None:
    done = everloop(shared, "skip", "bad-empty")

    assert done.returncode == 1
    assert "snapshot cannot be skipped" in plain(done.stderr)
    assert "retry it, or abort" in done.stderr


def test_skip_goes_on_without_the_stage_and_the_next_one_says_the_same(
    parked: dict[str, dict[str, Any]], shared: Settings, client: Client
) -> None:
    assert everloop(shared, "skip", "bad-constant-target", "--reason", "let us see").returncode == 0

    found = client.wait("bad-constant-target", until=lambda now: now["stage"] == "prepare" and bool(now["error"]))
    found = client.wait("bad-constant-target", until=lambda now: now["status"] == "needs_attention", timeout=60)

    assert found["stage"] == "prepare"
    assert "always 'no'" in found["error"]["message"]
    assert [stage["status"] for stage in found["stages"] if stage["stage"] == "validate"] == ["skipped"]


def test_a_retry_that_finds_the_same_parks_again(
    parked: dict[str, dict[str, Any]], client: Client, http: httpx.Client
) -> None:
    wrong = http.post(f"{client.url}/api/v1/lifecycles/bad-one-row/retry", json={"stage": "train"})
    assert wrong.status_code == 409
    assert "snapshot" in wrong.json()["detail"]

    assert http.post(f"{client.url}/api/v1/lifecycles/bad-one-row/retry").status_code == 202

    attempts = _until(lambda: _failed(client, "bad-one-row"), lambda found: len(found) == 2)
    assert all("1 row" in attempt["error"]["message"] for attempt in attempts)


def _failed(client: Client, lifecycle: str) -> list[dict[str, Any]]:
    return [stage for stage in client.show(lifecycle)["stages"] if stage["status"] == "failed"]


def _until(look: Callable[[], Any], right: Callable[[Any], bool], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not right(found := look()):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


MENDED = ("vanished", "another-schema", "lonely-class")


def test_a_mended_source_and_retry_lead_to_the_gate(
    parked: dict[str, dict[str, Any]], shared: Settings, client: Client, http: httpx.Client, sources: Path
) -> None:
    for name in MENDED:
        shutil.rmtree(sources / name, ignore_errors=True)
        good(sources / name)

    assert everloop(shared, "retry", "bad-vanished").returncode == 0
    client.retry("bad-another-schema")
    assert http.post(f"{client.url}/api/v1/lifecycles/bad-lonely-class/retry").status_code == 202
    found = {name: _until(lambda name=name: client.show(f"bad-{name}"), _at_the_gate) for name in MENDED}

    runs = {name: [(stage["stage"], stage["status"]) for stage in found[name]["stages"][:4]] for name in MENDED}
    assert runs["vanished"][:3] == [("snapshot", "failed"), ("snapshot", "done"), ("validate", "done")]
    # What was wrong with the data is mended at the source: it is read again.
    assert runs["lonely-class"] == [
        ("snapshot", "done"),
        ("validate", "failed"),
        ("snapshot", "done"),
        ("validate", "done"),
    ]


def _at_the_gate(found: dict[str, Any]) -> bool:
    return bool(found["status"] == "waiting_approval")


def test_abort_ends_a_parked_lifecycle_by_command_and_by_http(
    parked: dict[str, dict[str, Any]], shared: Settings, client: Client, http: httpx.Client
) -> None:
    assert everloop(shared, "abort", "bad-no-target", "--reason", "wrong file").returncode == 0
    ended = http.post(f"{client.url}/api/v1/lifecycles/bad-header-only/abort", json={"reason": "no data yet"})
    assert ended.status_code == 202

    for name, reason in (("no-target", "wrong file"), ("header-only", "no data yet")):
        found = client.wait(f"bad-{name}", timeout=30, until=lambda now: now["status"] == "aborted")
        found = _until(lambda name=name: client.show(f"bad-{name}"), lambda now: now["status"] == "aborted")
        assert found["reason"] == reason
        assert http.get(f"{client.url}/lifecycles/bad-{name}").status_code == 200
    late = everloop(shared, "retry", "bad-no-target")
    assert late.returncode == 1
    assert "already ended" in plain(late.stderr)


# --- specs ------------------------------------------------------------------------------------------


def test_init_refuses_what_cannot_be_learned_from(shared: Settings, tmp_path: Path) -> None:
    for name, text, says in (("none", table(), "nope"), ("empty", "", "is empty"), ("header", table(0), "no rows")):
        (tmp_path / f"{name}.csv").write_text(text)
        place = str(tmp_path / f"{name}.yaml")

        done = everloop(shared, "init", str(tmp_path / f"{name}.csv"), "--target", "nope", "-o", place)

        assert done.returncode == 1
        assert says in plain(done.stderr)
        assert "hint: " in done.stderr
        assert not Path(place).exists()


def test_a_bad_spec_is_refused_by_its_field_and_starts_nothing(
    client: Client, http: httpx.Client, sources: Path, tmp_path: Path, shared: Settings
) -> None:
    spec = spec_of(sources, "refused")
    url = f"{client.url}/api/v1/lifecycles"

    def send(body: bytes, key: str = "bad-refused") -> dict[str, Any]:
        sent = http.post(url, content=body, headers={"Content-Type": "application/json", "Idempotency-Key": key})
        problem = sent.json()
        assert sent.headers["content-type"] == "application/problem+json"
        assert sent.status_code == problem["status"]
        plain(sent.text)
        return problem

    whole = json.dumps(spec)
    rate = whole.replace('"rounds": 5', '"learning_rate": NaN')
    for body, status, field in (
        (rate, 422, "training.learning_rate"),
        (rate.replace("NaN", "Infinity"), 422, "training.learning_rate"),
        (rate.replace("NaN", "1e999"), 422, "training.learning_rate"),
        (json.dumps(spec | {"targt": "y"}), 422, "targt"),
        (json.dumps({name: value for name, value in spec.items() if name != "target"}), 422, "target"),
        (json.dumps(spec | {"features": {"include": ["y"]}}), 422, "features.include"),
        (json.dumps(spec | {"source": {"path": "relative.csv"}}), 422, "source.path"),
        (whole.replace('"y"', f'"{"y" * (2 << 20)}"'), 413, "body"),
        ("{", 400, ""),
        ("[]", 400, ""),
    ):
        problem = send(body.encode())
        assert (problem["status"], problem["field"]) == (status, field), problem
        assert problem["detail"]
    assert send(whole.encode(), key="")["field"] == "Idempotency-Key"
    with pytest.raises(EverloopError, match="bad-refused"):
        client.show("bad-refused")

    (tmp_path / "spec.yaml").write_text(
        "model: refused\ntask: binary\ntarget: y\nsource: {path: x.csv}\nsplit: {test: .nan}\n"
    )
    done = everloop(shared, "submit", str(tmp_path / "spec.yaml"))
    assert done.returncode == 1
    assert "split.test" in plain(done.stderr)
    with pytest.raises(Invalid, match="NaN"):
        client.predict("vanished", {"age": float("nan")})


def test_a_key_stands_for_one_body(
    parked: dict[str, dict[str, Any]], client: Client, shared: Settings, sources: Path, tmp_path: Path
) -> None:
    spec = spec_of(sources / "vanished", "vanished")

    assert client.submit(spec, "bad-vanished")["id"] == "bad-vanished"
    with pytest.raises(Conflict, match="another spec") as refused:
        client.submit(spec | {"metric": "accuracy"}, "bad-vanished")
    (tmp_path / "other.json").write_text(json.dumps(spec | {"metric": "log_loss"}))
    done = everloop(shared, "submit", str(tmp_path / "other.json"), "--key", "bad-vanished")

    assert refused.value.field == "Idempotency-Key"
    assert refused.value.hint
    assert done.returncode == 1
    assert "use a new key" in plain(done.stderr)


# --- gates and predictions --------------------------------------------------------------------------


def test_a_closed_gate_takes_no_decision(
    parked: dict[str, dict[str, Any]], shared: Settings, client: Client, http: httpx.Client
) -> None:
    assert client.show("bad-another-schema")["status"] == "waiting_approval"
    url = f"{client.url}/api/v1/approvals/bad-another-schema/decision"
    assert http.post(url, json={"verdict": "reject"}).json()["field"] == "comment"
    assert http.post(url, json={"verdict": "perhaps"}).json()["field"] == "verdict"
    stale = http.post(url, json={"verdict": "approve", "evidence_digest": "0" * 64})
    assert (stale.status_code, stale.json()["field"]) == (409, "evidence_digest")
    assert everloop(shared, "reject", "bad-another-schema", "-m", "only a test").returncode == 0
    assert client.wait("bad-another-schema", timeout=30, until="end")["status"] == "rejected"

    late = http.post(url, json={"verdict": "approve"})
    done = everloop(shared, "approve", "bad-another-schema", "--yes")

    assert late.status_code == 409
    assert late.json()["code"] == "gate_closed"
    assert late.json()["hint"]
    assert done.returncode == 1
    assert "rejected" in plain(done.stderr)
    for page in ("approvals", "lifecycles"):
        assert http.get(f"{client.url}/{page}/bad-another-schema").status_code == 200
    none = http.post(f"{client.url}/api/v1/approvals/bad-empty/decision", json={"verdict": "approve"})
    assert (none.status_code, none.json()["field"]) == (404, "lifecycle")


def test_predict_refuses_rows_that_do_not_fit(
    parked: dict[str, dict[str, Any]], shared: Settings, client: Client, http: httpx.Client
) -> None:
    assert everloop(shared, "approve", "bad-vanished", "--yes").returncode == 0
    assert client.wait("bad-vanished", timeout=60, until="end")["status"] == "released"
    _until(client.serving, lambda now: any(each["model"] == "vanished" and each["version"] for each in now["models"]))
    fine = {"age": 40, "colour": "red"}
    assert client.predict("vanished", fine)["predictions"][0]["label"] in ("yes", "no")

    for row, field in (
        ({"age": "forty", "colour": "red"}, "age"),
        ({"age": 40, "colour": 7}, "colour"),
        ({"age": [40], "colour": "red"}, "age"),
        ({"colour": "red"}, "age"),
        (fine | {"agee": 1}, "agee"),
    ):
        done = everloop(shared, "predict", "vanished", json.dumps([fine, row])) if field == "agee" else None
        with pytest.raises(Invalid) as refused:
            client.predict("vanished", [fine, row])
        assert refused.value.field == f"rows[1].{field}"
        assert refused.value.hint
        assert done is None or (done.returncode == 1 and "agee" in plain(done.stderr))
    for body, field in (
        ('{"row": {"age": NaN, "colour": "red"}}', "row.age"),
        ('{"row": {"age": -Infinity, "colour": "red"}}', "row.age"),
    ):
        sent = http.post(
            f"{client.serve_url}/models/vanished/predict", content=body, headers={"Content-Type": "application/json"}
        )
        assert (sent.status_code, sent.json()["field"]) == (422, field)
    with pytest.raises(EverloopError, match="nothing is released"):
        client.predict("nobody", fine)


def test_after_all_of_it_every_page_answers_and_the_journal_is_clean(
    parked: dict[str, dict[str, Any]], shared: Settings, client: Client, http: httpx.Client
) -> None:
    for place in ("/", "/healthz", "/readyz", "/lifecycles/bad-empty?still=1", "/lifecycles/bad-vanished"):
        answer = http.get(client.url + place)
        assert answer.status_code == 200, place
        plain(answer.text)
    assert {row["id"] for row in client.list(200)} >= {f"bad-{name}" for name in BAD}
    for log in ("api.log", "serve.log"):
        assert "Traceback" not in (shared.logs_dir / log).read_text()
    assert everloop(shared, "journal", "verify").returncode == 0
