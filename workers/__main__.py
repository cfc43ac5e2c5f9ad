"""`python -m workers control | compute | scheduler | slot NAME | node | dev | journal rebuild|verify`."""

import asyncio
import os
import sys

from everloop import engine, settings
from everloop.errors import EverloopError, sentence


def main(arguments: list[str]) -> None:
    """Become the process that *arguments* name; each loads only what it needs."""
    here = settings.load()
    os.umask(settings.PRIVATE)
    match arguments:
        case ["control"]:
            from workers import control

            asyncio.run(control.main(here))
        case ["compute"]:
            from workers import compute

            asyncio.run(compute.main(here))
        case ["scheduler"]:
            from workers import cluster

            cluster.scheduler_main(here)
        case ["slot", name]:
            from workers import cluster

            cluster.slot_main(here, name)
        case ["node"]:
            from workers import node

            node.main(here)
        case ["dev", *flags]:
            engine.become("workers.dev", *flags)
        case ["journal", ("rebuild" | "verify") as action, *flags]:
            from workers import journal

            asyncio.run(journal.main(here, action, as_json="--json" in flags))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except EverloopError as error:
        sys.exit(sentence(error, as_json="--json" in sys.argv))
