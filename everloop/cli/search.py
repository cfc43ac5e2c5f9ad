"""Searches: start one and follow it, list its trials, take the best so far."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from everloop.cli.lifecycles import exit_by, follow, given_changes
from everloop.cli.options import AsJson, DataDir, Lifecycle, Reason, app
from everloop.cli.shared import connected, print_json, shown

Sort = Literal["best", "newest", "number", "seconds"]
State = Literal["complete", "pruned", "cut", "failed"]


@app.command()
def search(  # noqa: PLR0917  # options of a command, given by name
    spec: Annotated[Path, typer.Argument(help="A spec in YAML or JSON.", metavar="SPEC")],
    budget: Annotated[
        str | None, typer.Option("--budget", help="Time for trials: 60s, 10min, 2h [default: the spec's, or 60s].")
    ] = None,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="So many trials at most.")] = None,
    families: Annotated[
        str | None, typer.Option("--families", help="What is tried, with commas between: lightgbm,linear.")
    ] = None,
    go_on: Annotated[
        bool, typer.Option("--go-on", help="After the search, go on to the gate; else it ends there.")
    ] = False,
    key: Annotated[str | None, typer.Option("--key", help="The lifecycle's id [default: MODEL-<random>].")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Over what the spec says: --set search.sampler=random.", metavar="KEY=VALUE"),
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Search for the best family and parameters, with a live leaderboard."""
    with connected(data_dir) as client:
        started = client.search(
            spec,
            budget=budget,
            trials=trials,
            families=[name.strip() for name in families.split(",")] if families else None,
            changes=given_changes(changes or []),
            key=key,
            go_on=go_on,
        )
        if not as_json:
            typer.echo(f"{started.lifecycle}   (Ctrl-C leaves it running: everloop show {started.lifecycle})")
        found = follow(client, started.lifecycle, until="gate", quiet=as_json)
        answer = {"lifecycle": found, "search": started.now()} if found.get("search") else {"lifecycle": found}
    if as_json:
        print_json(answer)
    elif found["status"] == "done":
        typer.echo(f"on to the gate with it: everloop fork {found['id']} --from evaluate --set until=null")
    exit_by(found)


@app.command()
def trials(  # noqa: PLR0917  # options of a command, given by name
    lifecycle: Lifecycle,
    sort: Annotated[Sort, typer.Option("--sort", help="What comes first.")] = "best",
    family: Annotated[str | None, typer.Option("--family", help="Only this family's.")] = None,
    state: Annotated[State | None, typer.Option("--state", help="Only those that ended so.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="How many.")] = 20,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """List the trials of a search: what was chosen, how good it was, and which parameters made the difference."""
    with connected(data_dir) as client:
        rows = client.trials(lifecycle, order=sort, family=family, state=state, limit=limit)
        found = client.searched(lifecycle).now()
    if as_json:
        print_json(rows)
        return
    shown(found, as_json, lambda console: console.search(found, rows))


@app.command("take-best")
def take_best(lifecycle: Lifecycle, reason: Reason = "", data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """End a search now: its lifecycle goes on with the best trial so far."""
    with connected(data_dir) as client:
        answer = client.take_best(lifecycle, reason)
    print_json(answer) if as_json else typer.echo(f"taking the best so far   (everloop watch {lifecycle})")
