"""The data of a lifecycle: what was really read, what the rules changed, and the rejected values to download."""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from typer.testing import CliRunner

from activities.compute import data
from api.app import create_app
from everloop import console, contracts
from everloop.artifacts import Artifacts
from everloop.cli import app
from everloop.client import Client
from everloop.errors import Invalid, NotFound
from everloop.records import Snapshot
from everloop.settings import Settings
from everloop.store import LifecycleRow, Store
from tests import api_parts as parts
from tests import stores
from tests.job import FolderJob
from tests.stages import SLOT, spec_of
from workflows.stage import _blobs as blobs_of

ROWS = 120


class Served(NamedTuple):
    http: httpx.Client
    client: Client
    store: Store
    settings: Settings


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An API whose store holds one lifecycle that failed at `validate`, and one that has no snapshot yet.

    120 rows: `oops` among the hours, `NA` among the colours, three rows without a target.
    """
    folder = tmp_path_factory.mktemp("data")
    settings = parts.settings_in(folder)
    store = stores.migrated(settings.database)
    job = FolderJob(folder)
    job.artifacts = Artifacts(settings.artifacts)
    lines = (
        f"{'oops' if n == 5 else n},{'NA' if n % 40 == 0 else '<b>red</b>'},{'' if n in (7, 8, 9) else n % 2}"
        for n in range(ROWS)
    )
    (folder / "t.csv").write_text("hours,colour,y\n" + "\n".join(lines) + "\n")
    spec = spec_of(folder / "t.csv", "binary", "y", columns={"hours": {"type": "number"}})
    taken: Snapshot = data.snapshot(contracts.SnapshotRequest(spec=spec, slot=SLOT), job)
    common: dict[str, Any] = {"model": "t", "spec": spec.model_dump_json()}
    error = {"stage": "validate", "error": "TargetUnusable", "message": "the target is empty", "hint": "mend it"}
    rows = [
        parts.lifecycle("failed/9", status="needs_attention", stage="validate", error=error, **common),
        parts.stage("snapshot", 0, lifecycle="failed/9", blobs={"manifest": "0" * 64}),  # of an earlier attempt
        parts.stage("validate", 1, "failed", lifecycle="failed/9"),
        parts.stage("snapshot", 2, lifecycle="failed/9", blobs=blobs_of(taken)),
        parts.stage("validate", 3, "failed", lifecycle="failed/9"),
        parts.lifecycle("young", status="running", stage="snapshot", **common),
        parts.stage("snapshot", 0, "running", lifecycle="young"),
    ]
    with store.write() as session:
        session.add_all(rows)
    with parts.running(create_app(settings), settings.port_base) as url, parts.client_of(settings, url) as http:
        yield Served(http, Client(url, parts.key_of(settings), settings.data_dir, serve_url=url), store, settings)


def test_the_data_of_a_lifecycle_that_failed_is_shown_without_any_version(served: Served) -> None:
    page = served.http.get("/data/failed/9")

    assert page.status_code == 200
    assert "3 values of <code>colour</code> are read as missing" in page.text
    assert "3 rows have no target" in page.text
    assert page.text.count("<svg") == 3
    assert "&lt;b&gt;red&lt;/b&gt;: 117" in page.text
    assert "read as integer, as the spec says" in page.text


def test_each_column_says_how_it_was_read_what_it_holds_and_what_was_changed(served: Served) -> None:
    found = served.client.data("failed/9")

    assert (found["rows"], found["target"], found["target_missing"]) == (120, "y", 3)
    assert [file["rows"] for file in found["files"]] == [120]
    columns = {column["name"]: column for column in found["columns"]}
    assert (columns["hours"]["read"]["type"], columns["hours"]["read"]["declared"]) == ("integer", True)
    assert columns["hours"]["changed"] == ["1 value of `hours` is not as declared: 'oops'"]
    assert sum(bar["rows"] for bar in columns["hours"]["bars"]) == 119
    assert columns["colour"]["bars"] == [{"label": "<b>red</b>", "rows": 117}]
    assert columns["colour"]["missing"] == 3
    assert found["changed"] == [said for column in found["columns"] for said in column["changed"]]


def test_the_rejected_values_are_downloaded_by_page_and_by_client(served: Served) -> None:
    lines = ["file,row,column,value", "t.csv,6,hours,oops"]

    assert served.http.get("/rejected/failed/9").text.splitlines() == lines
    assert served.client.rejected("failed/9").splitlines() == lines


def test_a_lifecycle_says_what_the_rules_changed_and_how_many_rows_lost_their_target(served: Served) -> None:
    found = served.client.show("failed/9")
    page = served.http.get("/lifecycles/failed/9").text

    assert found["notes"] == [
        "3 of 120 rows have no target: nothing is learned from them",
        "1 value of `hours` is not as declared: 'oops'",
        "3 values of `colour` are read as missing: 'NA'",
    ]
    assert found["links"]["data"].endswith("/data/failed/9")
    assert "3 of 120 rows have no target" in page
    assert 'href="/data/failed/9"' in page
    shown = _printed(console.lifecycle(found))
    assert "data: 3 of 120 rows have no target" in shown
    assert "everloop data failed/9" in shown


def test_a_terminal_shows_the_same_columns(served: Served) -> None:
    shown = _printed(console.data(served.client.data("failed/9")))

    assert "3 of 120 rows have no target (y)" in shown
    assert "integer (declared)" in shown
    assert "'oops'" in shown
    assert "everloop data failed/9 --rejected" in shown


def test_files_that_a_trainer_kept_are_listed_and_downloaded_as_nothing_a_browser_runs(served: Served) -> None:
    store = Artifacts(served.settings.artifacts)
    page, shape = b"<script>alert(1)</script>", b"\x00\x01"
    kept = [store.put(page, "<b>x.html"), store.put(shape, "my plot.png")]
    ran = {"artifacts": [blob.model_dump() for blob in kept]}
    blobs = {"environment": store.put(b"{}", "environment.json").sha256, "model": "0" * 64}
    with served.store.write() as session:
        session.add(parts.lifecycle("kept/1", status="released", stage="release"))
        session.add(parts.stage("train", 0, lifecycle="kept/1", ran=ran | {"device": "cpu-0"}, blobs=blobs))

    (train,) = served.client.show("kept/1")["stages"]
    html = served.http.get("/lifecycles/kept/1").text
    answer = served.http.get("/artifacts/kept/1/train/my%20plot.png")

    assert [file["name"] for file in train["kept"]] == ["<b>x.html", "my plot.png", "environment.json"]
    assert 'href="/artifacts/kept/1/train/my%20plot.png?start=1"' in html
    assert "&lt;b&gt;x.html" in html and "<b>x" not in html
    assert answer.content == shape
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert served.client.artifact("kept/1", "train", "my plot.png") == shape
    assert served.client.artifact("kept/1", "train", "environment.json") == b"{}"
    assert "my plot.png" in _printed(console.lifecycle(served.client.show("kept/1")))
    for stage, name in (("train", "model"), ("evaluate", "my plot.png")):
        with pytest.raises(NotFound):
            served.client.artifact("kept/1", stage, name)
    path = "/api/v1/lifecycles/kept/1/artifacts/train/environment.json"
    assert served.http.get(path, headers={"Authorization": "Bearer no"}).status_code == 401


@pytest.fixture
def twice(served: Served) -> str:
    """A lifecycle whose training kept a file before a bug of its, and again when it was mended."""
    store = Artifacts(served.settings.artifacts)
    first, second = store.put(b"before the bug", "loss.txt"), store.put(b"mended", "loss.txt")
    blobs = {"environment": store.put(b"{}", "environment.json").sha256}
    with served.store.write() as session:
        if session.get(LifecycleRow, "twice") is None:
            session.add(parts.lifecycle("twice", status="released", stage="release"))
            for place, stage, status, more in (
                (0, "train", "failed", {"error": {"message": "a bug", "kept": [first.model_dump()]}}),
                (1, "snapshot", "done", {}),
                (2, "train", "done", {"ran": {"artifacts": [second.model_dump()]}, "blobs": blobs}),
                (3, "refit", "done", {"blobs": blobs}),
            ):
                session.add(parts.stage(stage, place, status, lifecycle="twice", **more))
    return "twice"


def test_every_start_of_a_stage_lists_what_it_kept_and_each_can_be_had(served: Served, twice: str) -> None:
    rows = served.client.kept(twice)
    html = served.http.get(f"/lifecycles/{twice}").text

    assert [(row["stage"], row["start"], row["status"], row["name"], row["size_bytes"]) for row in rows] == [
        ("train", 1, "failed", "loss.txt", 14),
        ("train", 2, "done", "loss.txt", 6),
        ("train", 2, "done", "environment.json", None),
        ("refit", 1, "done", "environment.json", None),
    ]
    assert served.client.artifact(twice, "train", "loss.txt") == b"mended"
    assert served.client.artifact(twice, "train", "loss.txt", start=1) == b"before the bug"
    for start in (1, 2):
        assert f'href="/artifacts/twice/train/loss.txt?start={start}"' in html
    assert served.http.get("/artifacts/twice/train/loss.txt?start=1").content == b"before the bug"
    assert '<span class="dim">start 1 of train, failed</span>' in html
    with pytest.raises(NotFound, match="by start 3 of train"):
        served.client.artifact(twice, "train", "loss.txt", start=3)
    assert served.http.get("/api/v1/lifecycles/twice/artifacts/train/loss.txt?start=0").status_code == 422
    assert "no file was kept" in _printed(console.kept(served.client.kept("failed/9"), "failed/9"))


def test_a_kept_file_is_fetched_from_the_command_line(
    served: Served, twice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def connected(_: Path | None) -> Iterator[Client]:
        yield served.client

    monkeypatch.setattr("everloop.cli.kept.connected", connected)
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()

    def run(*words: str) -> Any:
        return runner.invoke(app, ["kept", twice, *words])

    listed, fetched, again = run(), run("loss.txt"), run("loss.txt", "-o", "loss.txt")
    first, piped = run("loss.txt", "--start", "1", "--output", "first.txt", "--json"), run("loss.txt", "-o", "-")

    assert "loss.txt" in listed.stdout and "failed" in listed.stdout
    assert fetched.stdout == "wrote loss.txt: 6 bytes, kept by start 2 of train\n"
    assert (tmp_path / "loss.txt").read_bytes() == b"mended" == piped.stdout_bytes
    assert isinstance(again.exception, Invalid) and "loss.txt exists" in str(again.exception)
    assert (tmp_path / "first.txt").read_bytes() == b"before the bug"
    assert json.loads(first.stdout)["start"] == 1
    both, nobody = run("environment.json"), run("nothing.txt")
    assert isinstance(both.exception, Invalid) and "train and refit kept" in str(both.exception)
    assert isinstance(nobody.exception, NotFound) and "everloop kept twice" in nobody.exception.hint
    assert run("environment.json", "--stage", "refit").exit_code == 0


def test_before_the_snapshot_has_ended_it_says_when_there_will_be_something(served: Served) -> None:
    for lifecycle, says in (("young", "once the snapshot stage has ended"), ("nobody", "everloop list")):
        with pytest.raises(NotFound) as refused:
            served.client.data(lifecycle)
        assert says in refused.value.hint
        assert served.http.get(f"/data/{lifecycle}").status_code == 404
    assert served.client.show("young")["notes"] == []
    assert "data" not in served.client.show("young")["links"]


def _printed(shown: Any) -> str:
    from rich.console import Console

    terminal = Console(width=200, file=io.StringIO(), highlight=False)
    terminal.print(shown)
    return terminal.file.getvalue()
