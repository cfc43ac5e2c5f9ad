"""The data page of a lifecycle: what was really read, what the rules changed, and the rejected values to download."""

from pathlib import Path

from activities.compute import data
from api.app import create_app
from everloop import contracts
from everloop.artifacts import Artifacts
from everloop.records import Blob
from everloop.store import Store
from tests import api_parts as parts
from tests.unit.test_compute_stages import SLOT, FolderJob, spec_of

ROWS = 120


def test_the_data_page_shows_each_column_what_was_changed_and_the_rejected_values(tmp_path: Path) -> None:
    settings = parts.settings_in(tmp_path)
    store = Store(settings.database)
    store.migrate()
    job = FolderJob(tmp_path)
    job.artifacts = Artifacts(settings.artifacts)
    lines = (f"{'oops' if n == 5 else n},{'NA' if n % 40 == 0 else '<b>red</b>'},{n % 2}" for n in range(ROWS))
    (tmp_path / "t.csv").write_text("hours,colour,y\n" + "\n".join(lines) + "\n")
    spec = spec_of(tmp_path / "t.csv", "binary", "y", columns={"hours": {"type": "number"}})
    taken = data.snapshot(contracts.SnapshotRequest(spec=spec, slot=SLOT), job)
    nothing = Blob(sha256="0" * 64, size_bytes=0)
    version = parts.version(nothing, nothing).model_copy(update={"snapshot": taken, "lifecycle": "credit-9"})
    with store.write() as session:
        session.add(parts.version_row(version))

    with parts.running(create_app(settings), settings.port_base) as url, parts.client_of(settings, url) as client:
        page = client.get("/data/credit-9")
        rejected = client.get("/rejected/credit-9")
        missing = client.get("/data/credit-0")

    assert page.status_code == 200
    assert "3 values of <code>colour</code> are read as missing" in page.text
    assert page.text.count("<svg") == 3
    assert "&lt;b&gt;red&lt;/b&gt;: 117" in page.text
    assert rejected.text.splitlines() == ["file,row,column,value", "t.csv,6,hours,oops"]
    assert missing.status_code == 404
