"""Predictions in numbers: score a file, and the log of what was answered."""

import time
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from everloop.cli.options import AsJson, DataDir, Project, app
from everloop.cli.shared import connected, print_json, shown
from everloop.errors import Invalid

POLL_SECONDS = 0.5


@app.command()
def score(  # noqa: PLR0917  # options of a command, given by name
    model: Annotated[str, typer.Argument(help="Name of a released model.")],
    file: Annotated[Path, typer.Argument(help="Rows: a CSV, TSV or Parquet file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to: FILE.parquet or FILE.csv.")],
    rejects: Annotated[
        Path | None, typer.Option("--rejects", help="Rows that could not be answered [default: beside the output].")
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="Goes on with the score of this key [default: a new one].")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the files.")] = False,
    project: Project = "default",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Answer every row of a file by the released version. It goes on whatever is killed; a bad row stops nothing."""
    from everloop.client.predictions import form_of

    form = form_of(output)
    apart = rejects or output.with_name(f"{output.stem}.rejects.{form}")
    for place in (output, apart):
        if place.exists() and not force:
            raise Invalid(f"{place} exists", field="--output", hint="--force overwrites it")
    with connected(data_dir) as client:
        found = client.score(model, file, form, key, project)
        again = f"everloop score {model} {file} -o {output} --key {found['key']}"
        typer.echo(f"score {found['key']}; after an interruption: {again}", err=True)
        said = ""
        while found["status"] == "running":
            if found["sentence"] != said and not as_json:
                said = found["sentence"]
                typer.echo(said, err=True)
            time.sleep(POLL_SECONDS)
            found = client.score_status(model, found["key"], project)
        if found["status"] != "done":
            raise Invalid(found["sentence"], field="file", hint="mend the file, then score it again with a new key")
        client.score_file(model, found["key"], output, project)
        if found["rejected"]:
            client.score_file(model, found["key"], apart, project, rejects=True)
    files = {"output": str(output)} | ({"rejects": str(apart)} if found["rejected"] else {})
    if as_json:
        print_json(found | files)
        return
    typer.echo(f"wrote {output}: {found['rows']:,} rows, answered by version {found['version']}")
    if found["rejected"]:
        typer.echo(f"wrote {apart}: {found['rejected']:,} rows that could not be answered, each with the reason")


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
