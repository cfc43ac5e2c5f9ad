"""The command line: `everloop --help`. Each command that ends by itself has `--json`; errors are a line and a hint,
with `--json` an object on stderr. Workers, `api` and `serve` write their log as lines of JSON anyway.

Imports stand inside the commands: `--help` and completion must not load HTTP, YAML or Temporal.
"""

import sys

import typer

# In the order in which --help lists their commands.
# isort: off
from everloop.cli import stack, lifecycles, search, kept, models, predictions, labels, pool, budget, processes  # noqa: F401

# isort: on
from everloop.cli.options import app
from everloop.errors import EverloopError, sentence

__all__ = ["app", "main"]


def main() -> None:
    """Entry point: errors of ours are one line, a hint and exit code 1; never a traceback."""
    try:
        app()
    except EverloopError as error:
        typer.echo(sentence(error, as_json="--json" in sys.argv), err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `everloop list | head`
        sys.stderr.close()
        sys.exit(0)
