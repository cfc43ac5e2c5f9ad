"""Labels and the watch: what became of predictions, and data that broke."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from everloop.cli.options import AsJson, DataDir, Json, Project, app
from everloop.cli.rows import content_of, rows_of
from everloop.cli.shared import connected, print_json, shown
from everloop.errors import EverloopError

BATCH_LABELS = 10_000
NAMES = ("label", "request_id", "row", "key")


@app.command()
def labels(  # options of a command, given by name
    model: Annotated[str, typer.Argument(help="Name of a released model.")],
    file: Annotated[
        str, typer.Argument(help="A .csv, .json or .jsonl file of labels, or - for JSON on stdin; none: show them.")
    ] = "",
    project: Project = "default",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Say what became of predictions, or show what is known. Each row: a name (request_id and row, key, or columns of
    the model) and the label, under `label` or the target's own name.
    """
    with connected(data_dir) as client:
        if not file:
            found = client.labels(model, project=project)
            shown(found, as_json, lambda console: console.performance(found))
            return
        rows = _rows(file, lambda: client.schema(model, project))
        kept = 0
        try:
            for start in range(0, len(rows), BATCH_LABELS):
                kept += client.label(model, rows[start : start + BATCH_LABELS], project=project, first=start)["kept"]
        except EverloopError as error:
            if not kept:
                raise
            said = f"{error}; the {kept:,} labels before are kept, and may be sent again"
            raise type(error)(said, field=error.field, hint=error.hint) from None
    told = {"model": model, "project": project, "kept": kept}
    said = f"{kept:,} labels are kept; `everloop labels {model}` shows what they say once the monitor has looked"
    print_json(told) if as_json else typer.echo(said)


def _rows(file: str, schema: Callable[[], Json]) -> list[Json]:
    path = Path(file)
    if path.suffix.lower() not in (".csv", ".tsv") or not path.is_file():
        return rows_of(file, schema)
    from everloop import rows

    known = schema()
    return list(rows.texts_from_csv(content_of(path, known), path.name, known, NAMES))


@app.command("lift-quarantine")
def lift_quarantine(
    model: Annotated[str, typer.Argument(help="Name of a watched model.")],
    accept: Annotated[bool, typer.Option("--accept", help="The columns are meant to be as they are now.")] = False,
    project: Project = "default",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Say that data which was broken is mended (or, with --accept, meant to be so): retrainings may be caused again."""
    with connected(data_dir) as client:
        told = client.lift_quarantine(model, accept=accept, project=project)
    shown(told, as_json, lambda _: told["message"])
