"""`everloop worker node`: all devices of this host for a cluster whose control plane is elsewhere.

One process that minds a Dask worker for each device: what ends is started again, also while the scheduler is away.
"""

import logging
import signal
import socket
import threading
import time
from dataclasses import replace

from everloop import logs
from everloop.errors import Invalid
from everloop.settings import NODE, Settings
from workers import devices
from workers.dev.children import Child, end, how, load, log_of, pause

log = logging.getLogger(__name__)

STEADY_SECONDS = 30.0
"""One that has lived so long has begun well."""
LOOK_SECONDS = 0.1


def main(settings: Settings) -> None:
    """Run until told to stop. Raises `Invalid` for a host name that cannot be a device's."""
    logs.log_lines("node")
    here = replace(settings, node=settings.node or _name())
    here.logs_dir.mkdir(parents=True, exist_ok=True)
    load(("workers.cluster",))
    children = [Child(device.name, "workers", ("slot", device.name)) for device in devices.slots(here)]
    log.warning("node %s: %s for %s", here.node, ", ".join(child.name for child in children), here.dask)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        while not stop.is_set():
            for child in children:
                _tend(child, here)
            stop.wait(LOOK_SECONDS)
    finally:
        end([child.process for child in children if child.process])


def _name() -> str:
    name = socket.gethostname()
    if not NODE.fullmatch(name):
        raise Invalid(f"the host's name {name!r} cannot be a node's", field="EVERLOOP_NODE", hint="say EVERLOOP_NODE")
    return name


def _tend(child: Child, settings: Settings) -> None:
    if child.alive():
        return
    now = time.monotonic()
    if child.process is not None:
        child.quick_ends = child.quick_ends + 1 if now - child.started_at < STEADY_SECONDS else 0
        wait = pause(child.quick_ends)
        ended = how(child.process.exitcode)
        log.warning("%s ended (%s), again in %.1f s; see %s", child.name, ended, wait, log_of(settings, child.name))
        child.process, child.again_at = None, now + wait
    if now >= child.again_at:
        child.start(settings)
