"""A process of its own for work on the log: `python -m activities.compute.predictions compact|export PARENT < asked`.

It loads pyarrow, which control and the API never do, and ends with it. It holds no credentials. Standard output: what
was made, as JSON; or with exit status 3 why it was not. It ends with the process PARENT.
"""

import os
import signal
import sys

from activities.predictions.asked import Compact, Export
from everloop.children import die_with, refuse
from everloop.errors import EverloopError

NICE = 10


def main(what: str, parent: str) -> int:
    die_with(int(parent), signal.SIGKILL)  # the run of a keeper that has ended is given up
    os.nice(NICE)
    from activities.compute.predictions.compacting import compact
    from activities.compute.predictions.exporting import export

    asked = sys.stdin.buffer.read()
    try:
        if what == "compact":
            sys.stdout.write(compact(Compact.model_validate_json(asked)).model_dump_json())
        else:
            sys.stdout.write(export(Export.model_validate_json(asked)).model_dump_json())
    except EverloopError as error:
        return refuse(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
