"""`python -m api` is the API, `python -m api serve` the prediction server, `python -m api temporal-ui` the guard of
Temporal's UI. All on loopback.
"""

import logging
import os
import sys

import uvicorn

from api import connections
from everloop import logs
from everloop import settings as configuration
from everloop.settings import API, SERVE, TEMPORAL_UI


def main(which: str = "api") -> None:
    settings = configuration.load()
    os.umask(configuration.PRIVATE)
    logs.log_lines(which)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if which == "serve":
        from api.serve import create_app as create

        port = settings.port(SERVE)
    elif which == "api":
        from api.app import create_app as create

        port = settings.port(API)
    elif which == "temporal-ui":
        from api.temporal_ui import create_app as create  # type: ignore[assignment]

        port = settings.port(TEMPORAL_UI)
    else:
        sys.exit(f"python -m api [serve | temporal-ui]: {which!r} is neither")
    limits = connections.with_files()
    uvicorn.Server(connections.config(create(settings), port, limits)).run()


if __name__ == "__main__":
    main(*sys.argv[1:2])
