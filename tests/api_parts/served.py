"""A deployment of a test, and its app under a real uvicorn."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from api import connections, identity
from everloop import signing
from everloop.settings import Settings
from everloop.store import Store
from tests import stores
from tests.conftest import free_port_base


def settings_in(folder: Path, temporal: str = "127.0.0.1:9") -> Settings:
    """Settings of one deployment in *folder*; its Temporal is nowhere unless given."""
    return Settings(data_dir=folder, port_base=free_port_base(), temporal_address=temporal, person="ada")


def deployed(folder: Path) -> tuple[Settings, Store, signing.Signer]:
    """A deployment in *folder* as a prediction server finds it: tables, keys, credentials, and no release yet."""
    settings = settings_in(folder)
    store = stores.migrated(settings.database)
    signing.create_keys(settings.keys_dir)
    identity.prepare(settings, store)
    return settings, store, signing.Signer(settings.keys_dir)


@contextlib.contextmanager
def running(app: Any, port: int, limits: connections.Limits | None = None, base: Any = None) -> Iterator[str]:
    """*app* under a real uvicorn on loopback, as `python -m api` runs it; its address."""
    server = uvicorn.Server(connections.config(app, port, limits, base))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive(), "uvicorn ended at once"
        assert time.monotonic() < deadline, "uvicorn did not start"
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)


def key_of(settings: Settings) -> str:
    return (settings.keys_dir / "client.key").read_text().strip()


def client_of(settings: Settings, url: str) -> httpx.Client:
    """A client with the owner's bearer key."""
    return httpx.Client(
        base_url=url, headers={"Authorization": f"Bearer {key_of(settings)}"}, timeout=30, trust_env=False
    )
