"""A process of its own for work on the log: `python -m activities.compute.predictions compact|export < request.json`.

It loads pyarrow, which control and the API never do, and ends with it. It holds no credentials. Standard output: what
was made, as JSON; or with exit status 3 why it was not.
"""

import json
import os
import sys

from activities.predictions.asked import Compact, Export
from activities.predictions.child import REFUSED, die_with_parent
from everloop.errors import EverloopError

NICE = 10


def main(what: str) -> int:
    die_with_parent()
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
        told = {"error": type(error).__name__, "message": str(error), "field": error.field, "hint": error.hint}
        sys.stdout.write(json.dumps(told))
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
