"""The stack on this machine: start it, end it, forget it, sign in, see the demo."""

from pathlib import Path
from typing import Annotated

import typer

from everloop.cli.options import AsJson, DataDir, PortBase, Yes, app
from everloop.cli.shared import agreed, become, connected, print_json, settings_of


@app.command()
def up(data_dir: DataDir = None, port_base: PortBase = None, as_json: AsJson = False) -> None:
    """Start the whole stack on this machine and mind it until Ctrl-C. With --json: its addresses, once it is ready."""
    become("workers.dev", settings_of(data_dir, port_base), *(["--json"] if as_json else []))


@app.command()
def down(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """End the stack of a data folder, and whatever is left of it."""
    from everloop import stack

    done = stack.down(settings_of(data_dir))
    print_json({"done": done}) if as_json else typer.echo(done)


@app.command()
def reset(data_dir: DataDir = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Forget everything: remove what is in the data folder."""
    from everloop import stack

    settings = settings_of(data_dir)
    there = settings.data_dir.exists()
    if there and not yes and not agreed(f"Remove all data, models and history in {settings.data_dir}?"):
        typer.echo("nothing is removed", err=True)
        raise typer.Exit(1)
    stack.reset(settings)
    said = f"removed everything in {settings.data_dir}" if there else f"nothing is there: {settings.data_dir}"
    print_json({"done": said, "removed": there}) if as_json else typer.echo(said)


@app.command()
def login(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Print a one-time link that signs your browser in."""
    with connected(data_dir) as client:
        url = client.login_url()
    print_json({"url": url}) if as_json else typer.echo(url)


@app.command()
def demo(
    yes: Yes = False,
    rows: Annotated[
        int | None,
        typer.Option(
            "--rows",
            min=1000,
            help="Rows to sample [default: 60000]; with less than some 10000 a month proves no drift.",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", help="Data folder of the demo [default ~/.everloop/demo]", metavar="DIR"),
    ] = None,
    port_base: PortBase = None,
    as_json: AsJson = False,
) -> None:
    """Show the whole loop on a real year of data: train, approve, release, drift, retrain by itself."""
    from everloop import engine

    arguments = [flag for flag, given in (("--yes", yes), ("--json", as_json)) if given]
    for name, value in (("--rows", rows), ("--data-dir", data_dir), ("--port-base", port_base)):
        arguments += [name, str(value)] if value is not None else []
    engine.become("examples", *arguments)
