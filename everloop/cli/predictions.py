"""What was predicted: the log of a model, and its rows as a file."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from everloop.cli.options import AsJson, DataDir, Project, app
from everloop.cli.shared import connected, print_json, shown
from everloop.errors import Invalid


@app.command()
def log(  # noqa: PLR0917  # options of a command, given by name
    model: Annotated[str, typer.Argument(help="Name of a model.")],
    since: Annotated[str | None, typer.Option("--since", help="Event time from then on (ISO).")] = None,
    until: Annotated[str | None, typer.Option("--until", help="Event time before then (ISO).")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the rows: FILE.parquet or FILE.csv.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    project: Project = "default",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Show what a model's prediction log holds; or write its rows, each once, as Parquet or CSV."""
    if output is None and (since or until):
        raise Invalid("--since and --until choose rows, which -o FILE writes", field="--output", hint="add -o FILE")
    if output is not None and output.exists() and not force:
        raise Invalid(f"{output} exists", field="--output", hint="--force overwrites it")
    start, end = _moment("--since", since), _moment("--until", until)
    with connected(data_dir) as client:
        if output is None:
            found = client.log(model, project)
            shown(found, as_json, lambda console: console.log(found))
            return
        rows = client.log_rows(model, output, start, end, project)
    print_json({"file": str(output), "rows": rows}) if as_json else typer.echo(f"wrote {output}: {rows:,} rows")


def _moment(name: str, text: str | None) -> str | None:
    """ISO 8601, UTC where nothing else is said."""
    try:
        return None if text is None else datetime.fromisoformat(text).isoformat()
    except ValueError:
        raise Invalid(
            f"{name} {text!r} is no moment", field=name, hint="such as 2026-01-31 or 2026-01-31T12:00:00Z"
        ) from None
