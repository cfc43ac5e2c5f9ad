"""The processes of a stack, one each, as production runs them; its journal and its keys."""

from typing import Annotated

import typer

from everloop.cli.options import AsJson, DataDir, PortBase, app, journal, keys, worker
from everloop.cli.shared import become, print_json, settings_of, shown


@journal.command()
def rebuild(as_json: AsJson = False, data_dir: DataDir = None, port_base: PortBase = None) -> None:
    """Make the read models again from Temporal's histories."""
    become("workers", settings_of(data_dir, port_base), "journal", "rebuild", *(["--json"] if as_json else []))


@journal.command()
def verify(as_json: AsJson = False, data_dir: DataDir = None, port_base: PortBase = None) -> None:
    """Compare the read models with Temporal's histories; exit code 1 when they differ."""
    become("workers", settings_of(data_dir, port_base), "journal", "verify", *(["--json"] if as_json else []))


@keys.command("list")
def list_keys(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """List the keys that decisions are signed with: the present one, and those that were rotated out."""
    from everloop import signing

    rows = signing.listed(settings_of(data_dir).keys_dir)
    shown(rows, as_json, lambda console: console.keys(rows))


@keys.command()
def rotate(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Make a new signing key. What was signed before stays valid, and open gates take the new key's decisions."""
    from everloop import signing

    made = signing.rotate(settings_of(data_dir).keys_dir)
    print_json({"id": made}) if as_json else typer.echo(f"decisions are signed with key {made} from now on")


@worker.command()
def control(data_dir: DataDir = None, port_base: PortBase = None) -> None:
    """Workflows and light activities."""
    become("workers", settings_of(data_dir, port_base), "control")


@worker.command()
def compute(data_dir: DataDir = None, port_base: PortBase = None) -> None:
    """Submits jobs to Dask."""
    become("workers", settings_of(data_dir, port_base), "compute")


@worker.command()
def scheduler(data_dir: DataDir = None, port_base: PortBase = None) -> None:
    """The Dask scheduler."""
    become("workers", settings_of(data_dir, port_base), "scheduler")


@worker.command()
def slot(
    name: Annotated[str, typer.Argument(help="Name of the device: cpu0, cpu1, ...")],
    data_dir: DataDir = None,
    port_base: PortBase = None,
) -> None:
    """One Dask worker on one device."""
    become("workers", settings_of(data_dir, port_base), "slot", name)


@worker.command()
def node(data_dir: DataDir = None, port_base: PortBase = None) -> None:
    """All devices of this host, for the Dask scheduler at EVERLOOP_DASK_ADDRESS."""
    become("workers", settings_of(data_dir, port_base), "node")


@app.command()
def api(data_dir: DataDir = None, port_base: PortBase = None) -> None:
    """Run the API and its pages."""
    become("api", settings_of(data_dir, port_base))


@app.command()
def serve(data_dir: DataDir = None, port_base: PortBase = None) -> None:
    """Run the prediction server."""
    become("api", settings_of(data_dir, port_base), "serve")
