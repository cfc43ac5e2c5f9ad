"""`python -m workers.dev [--json]`: the launcher. It becomes itself once more, with what its forks show in `/proc`.

A fork shows the environment and the room for a command line that its parent was started with. So the launcher is
started with the name of this life of the stack in its environment, by which its processes are known
(`everloop/stack.py`), and with room for the command lines of its children.
"""

import os
import secrets
import sys

from everloop import engine, settings
from everloop.errors import EverloopError, sentence
from everloop.loading import uncollected

AS = "--as"
ROOM = " " * 64
"""An argument that nobody reads: names of processes are longer than ours."""
OURS = {"MALLOC_ARENA_MAX": "2", "MALLOC_TRIM_THRESHOLD_": "65536", "OPENBLAS_NUM_THREADS": "1"}
"""Each thread of each process would get an allocator of its own, whose freed memory nobody else uses. And numpy, which
Dask loads, would start threads when it is imported: a process with threads is not forked."""


def main() -> int:
    """Run the stack until it is told to end; the exit code."""
    flags = [flag for flag in sys.argv[1:] if flag == "--json"]
    if AS not in sys.argv:
        here = settings.load(session=f"up-{secrets.token_hex(6)}")
        ours = {name: value for name, value in OURS.items() if name not in os.environ}
        engine.become("workers.dev", *flags, AS, here.session, ROOM, extra=ours | here.environment())
    with uncollected():
        from workers.dev import launcher

    return launcher.main(as_json=bool(flags))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EverloopError as error:  # a setting that cannot be read
        sys.exit(sentence(error, as_json="--json" in sys.argv))
