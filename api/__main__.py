"""`python -m api` is the API, `python -m api serve` the prediction server, `python -m api temporal-ui` the guard of
Temporal's UI. All on loopback.
"""

import logging
import os
import sys

import uvicorn
from starlette.types import ASGIApp

from api import connections
from everloop import logs
from everloop import settings as configuration
from everloop.settings import API, TEMPORAL_UI


def main(which: str = "api") -> None:
    settings = configuration.load()
    os.umask(configuration.PRIVATE)
    logs.log_lines(which)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    limits = connections.with_files()
    app: ASGIApp
    if which == "serve":
        from api.serve import processes

        sys.exit(processes.run(settings, limits))
    elif which == "api":
        from api.app import create_app

        app, port = create_app(settings), settings.port(API)
    elif which == "temporal-ui":
        from api import temporal_ui

        app, port = temporal_ui.create_app(settings), settings.port(TEMPORAL_UI)
    else:
        sys.exit(f"python -m api [serve | temporal-ui]: {which!r} is neither")
    uvicorn.Server(connections.config(app, port, limits)).run()


if __name__ == "__main__":
    main(*sys.argv[1:2])
