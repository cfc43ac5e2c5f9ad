"""Evidently's report through the API: rendered in its own process, kept, and locked up in the browser."""

import contextlib
import io
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from activities.predictions.index import LogIndex
from api import identity
from api.app import create_app
from everloop import signing
from everloop.artifacts import Artifacts
from everloop.cli import app
from everloop.client import Client
from everloop.errors import NotFound
from everloop.predictions import PredictionLog
from everloop.records import Blob
from everloop.store import DriftRow
from tests import api_parts as parts
from tests import stores

START = datetime(2024, 3, 5, tzinfo=UTC)
NASTY = "</script><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    settings = parts.settings_in(tmp_path_factory.mktemp("report"))
    store = stores.migrated(settings.database)
    signing.create_keys(settings.keys_dir)
    artifacts = Artifacts(settings.artifacts)
    reference = io.BytesIO()
    columns = {
        "age": [float(20 + n % 50) for n in range(1500)],
        "purpose": [["car", "house"][n % 2] for n in range(1500)],
    }
    pyarrow.parquet.write_table(pa.table(columns), reference)
    kept = artifacts.put(reference.getvalue(), "reference.parquet")
    parts.release(store, artifacts, signing.Signer(settings.keys_dir), reference=kept)
    log(settings, 1200)
    with store.write() as session:
        session.add(drift(artifacts.put(b'{"share": 0.5}'), START))
        session.add(drift(artifacts.put(b'{"share": 0.0}'), START + timedelta(days=9)))
    with parts.running(create_app(settings), settings.port_base) as url, parts.client_of(settings, url) as client:
        yield settings, store, client


def log(settings, rows):
    written = PredictionLog(settings.predictions_dir / "default" / "credit")
    written.append(
        [
            {
                "request_id": str(n),
                "row": 0,
                "key": None,
                "event_time": (START + timedelta(minutes=n)).isoformat(),
                "logged_at": START.isoformat(),
                "version": 1,
                "features": {"age": 60 + n % 30, "purpose": NASTY if n % 3 else "car"},
                "prediction": {"probability": 0.5},
            }
            for n in range(rows)
        ]
    )
    written.close()


def drift(report: Blob, start: datetime) -> DriftRow:
    return DriftRow(
        workflow_id=f"monitor/default/credit-check-{start:%d}",
        run_id="r",
        seq=0,
        project="default",
        model="credit",
        version=1,
        window_start=start,
        window_end=start + timedelta(days=1),
        rows=1200,
        share=0.5,
        drifted=["age"],
        report=report.sha256,
        verdict="retrain",
        reason="50% of 2 columns drifted",
        checked_at=start + timedelta(days=1),
    )


def test_the_report_is_evidentlys_and_may_reach_nothing(served):
    settings, _, client = served

    answer = client.get("/api/v1/models/credit/drift/1/report", timeout=180)

    assert answer.status_code == 200, answer.text
    assert len(answer.content) > 100_000
    assert b"root_metric_" in answer.content
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts; default-src 'none'")
    assert "allow-same-origin" not in policy
    assert b"document.title='owned'" not in answer.content
    again = client.get(f"/api/v1/models/credit/drift/{START:%Y%m%dT%H%M%SZ}/report")
    assert again.content == answer.content
    assert len(list((settings.scratch_dir / "reports").iterdir())) == 1  # made once, nothing left beside it


def test_the_figures_are_given_as_they_were_kept(served):
    assert served[2].get("/api/v1/models/credit/drift/1/report.json").json() == {"share": 0.5}


def test_a_window_without_rows_says_so(served):
    answer = served[2].get("/api/v1/models/credit/drift/2/report", timeout=180)

    assert answer.status_code == 422
    assert answer.json()["field"] == "window"


def test_the_page_shows_the_report_in_a_frame_without_an_origin(served):
    page = served[2].get("/models/credit/drift/1").text

    assert '<iframe class="report" sandbox="allow-scripts"' in page


def test_the_log_is_shown_and_its_rows_are_a_file_of_typed_columns(served, tmp_path, monkeypatch):
    settings, store, client = served
    assert client.get("/api/v1/models/credit/log").status_code == 404
    LogIndex(store, settings.predictions_dir, "default", "credit").refresh()

    found = client.get("/api/v1/models/credit/log").json()
    assert (found["rows"], found["torn"], found["keep_seconds"]) == (1200, 0, None)
    assert found["days"] == [{"day": "2024-03-05", "rows": 1200}]
    assert "1,200 rows of event time 2024-03-05 00:00" in client.get("/models/credit").text

    with Client(str(client.base_url).rstrip("/"), data_dir=settings.data_dir) as ours:
        monkeypatch.setattr("everloop.cli.predictions.connected", lambda _: contextlib.nullcontext(ours))
        run = CliRunner()
        some = run.invoke(app, ["log", "credit", "--since", "2024-03-05T01:00", "-o", str(tmp_path / "rows.parquet")])
        assert some.output == f"wrote {tmp_path / 'rows.parquet'}: 1,140 rows\n"
        assert "1,200 rows" in run.invoke(app, ["log", "credit"]).output
        assert ours.log_rows("credit", tmp_path / "rows.csv", until=START + timedelta(hours=1)) == 60
        with pytest.raises(NotFound, match="in that time"):
            ours.log_rows("credit", tmp_path / "none.csv", since=START + timedelta(days=2))
    table = pyarrow.parquet.read_table(tmp_path / "rows.parquet")
    assert table.column_names[:6] == ["request_id", "row", "key", "event_time", "logged_at", "version"]
    assert table.schema.field("age").type == "double" and table.schema.field("purpose").type == "string"
    assert set(table["probability"].to_pylist()) == {0.5}
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 61
    assert list((settings.scratch_dir / "exports").iterdir()) == []
    assert not (tmp_path / "none.csv").exists()


def test_in_a_browser_the_report_draws_and_the_page_stays_ours(served, browser):
    settings, store, client = served
    client.get("/api/v1/models/credit/drift/1/report", timeout=180)
    violations = []
    page = browser.new_page()
    page.on("console", lambda message: violations.append(message.text) if message.type == "error" else None)
    page.goto(identity.login_link(settings, store, "ada")[0])
    page.goto(f"{client.base_url}/models/credit/drift/1")
    frame = page.frames[1]
    frame.wait_for_selector("text=age", timeout=60_000)
    title = page.title()
    origin = frame.evaluate("self.origin")

    assert title.startswith("credit · drift 2024-03-05")
    assert origin == "null"
    assert [text for text in violations if "Content Security Policy" in text] == []
