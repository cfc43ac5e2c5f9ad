"""A release that the prediction server refuses is said in red wherever people look, with what helps."""

import time

from rich.console import Console

from api import identity, serve
from api.app import create_app
from everloop import console, signing
from everloop.artifacts import Artifacts
from everloop.client import Client
from everloop.settings import API, SERVE
from tests import api_parts as parts
from tests import stores


def test_a_refused_release_is_on_home_the_models_page_and_in_the_lists(tmp_path):
    settings = parts.settings_in(tmp_path)
    store = stores.migrated(settings.database)
    signing.create_keys(settings.keys_dir)
    identity.prepare(settings, store)
    artifacts, signer = Artifacts(settings.artifacts), signing.Signer(settings.keys_dir)
    with store.write() as session:
        session.add(parts.lifecycle("credit-2", status="released", stage="monitor", version=2))
    parts.release(store, artifacts, signer)
    with (
        parts.running(create_app(settings), settings.port(API)) as url,
        parts.running(serve.create_app(settings), settings.port(SERVE)) as serve_url,
        parts.client_of(settings, url) as pages,
        Client(url, parts.key_of(settings), settings.data_dir, serve_url=serve_url) as client,
    ):
        assert "refuse" not in pages.get("/").text + pages.get("/models/credit").text
        assert client.models()[0]["refused"] == ""
        route = parts.release(store, artifacts, signer, seq=2, scale=0.02)
        path = tmp_path / "artifacts" / "sha256" / route.model_digest[:2] / route.model_digest
        path.chmod(0o600)
        path.write_bytes(b"other bytes")

        deadline = time.monotonic() + 60
        while not client.models()[0]["refused"]:
            assert time.monotonic() < deadline, client.serving()
            time.sleep(0.1)
        home, page = pages.get("/").text, pages.get("/models/credit").text
        listed, shown = client.models(), client.show("credit-2")
    store.close()

    why = "release 2 is refused: artifact"
    for found in (home, page):
        assert 'class="card red"' in found
        assert why in found
        assert "version 1 goes on answering" in found
        assert "<code>everloop journal verify</code>" in found
    assert "Nothing waits for a person" not in home
    assert "<title>(1) Everloop</title>" in home
    assert why in listed[0]["refused"]
    assert why in shown["refused"]
    for made in (console.models(listed), console.lifecycle(shown)):
        text = said(made)
        assert "is refused" in text
        assert "everloop journal verify" in text


def said(made: object) -> str:
    """What a wide terminal shows."""
    wide = Console(width=400, record=True, file=None, quiet=False)
    with wide.capture() as captured:
        wide.print(made)
    return captured.get()
