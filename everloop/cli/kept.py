"""Files that a lifecycle's jobs kept for people: list them, fetch one."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from everloop.cli.options import AsJson, DataDir, Json, Lifecycle, app
from everloop.cli.shared import connected, print_json, shown
from everloop.errors import Invalid, NotFound


@app.command()
def kept(  # noqa: PLR0917  # options of a command, given by name
    lifecycle: Lifecycle,
    name: Annotated[str | None, typer.Argument(help="A file to fetch; left out, all are listed.")] = None,
    stage: Annotated[str | None, typer.Option("--stage", help="Only this stage's.")] = None,
    start: Annotated[
        int | None, typer.Option("--start", min=1, help="Only this start of the stage [default: the latest].")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write it, - is stdout [default: NAME here].")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """List the files that jobs kept (`log_artifact`), of every start of a stage; or fetch one."""
    with connected(data_dir) as client:
        rows = [
            row for row in client.kept(lifecycle) if stage in (None, row["stage"]) and start in (None, row["start"])
        ]
        if name is None:
            shown(rows, as_json, lambda console: console.kept(rows, lifecycle))
            return
        found = _one(rows, name, lifecycle)
        place = output or Path(name)
        on_stdout = str(place) == "-"
        if place.exists() and not on_stdout and not force:
            raise Invalid(f"{place} exists", field="--output", hint="--force overwrites it, -o FILE writes elsewhere")
        content = client.artifact(lifecycle, found["stage"], name, found["start"])
    if on_stdout:
        sys.stdout.buffer.write(content)
        return
    try:
        place.write_bytes(content)
    except OSError as error:
        raise Invalid(f"cannot write {place}: {error.strerror}", field="--output") from None
    said = f"wrote {place}: {len(content):,} bytes, kept by start {found['start']} of {found['stage']}"
    print_json({"file": str(place), **found}) if as_json else typer.echo(said)


def _one(rows: list[Json], name: str, lifecycle: str) -> Json:
    """The latest file of that *name*. Raises `NotFound`, and `Invalid` where more than one stage kept one."""
    named = [row for row in rows if row["name"] == name]
    if not named:
        raise NotFound(f"no file {name!r} was kept", field="name", hint=f"`everloop kept {lifecycle}` lists them")
    stages = list(dict.fromkeys(row["stage"] for row in named))
    if len(stages) > 1:
        raise Invalid(f"{' and '.join(stages)} kept a file {name!r}", field="--stage", hint="say which with --stage")
    return named[-1]
