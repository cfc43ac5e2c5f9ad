"""`python -m api` is the API; `python -m api serve` is the prediction server. Both on loopback."""

import logging
import sys

import uvicorn

from api import connections
from everloop import logs
from everloop import settings as configuration
from everloop.settings import API, SERVE


def main(which: str = "api") -> None:
    settings = configuration.load()
    logs.log_lines(which)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if which == "serve":
        from api.serve import create_app as create

        port = settings.port(SERVE)
    elif which == "api":
        from api.app import create_app as create

        port = settings.port(API)
    else:
        sys.exit(f"python -m api [serve]: {which!r} is neither")
    limits = connections.with_files()
    uvicorn.Server(connections.config(create(settings), port, limits)).run()


if __name__ == "__main__":
    main(*sys.argv[1:2])
