"""A pool: who holds what, who waits and why, the queue tree, machines, and what leased time was for."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from everloop.cli.options import AsJson, DataDir, Grace, Json, Pool, Yes, app, lease, node, pools, queue
from everloop.cli.shared import agreed, connected, print_json, shown, told_done
from everloop.errors import Invalid

QueueName = Annotated[str, typer.Argument(help="Name of a queue.", metavar="QUEUE")]
OnlyTry = Annotated[bool, typer.Option("--try", help="Say what it would do, and change nothing.")]
Amount = Annotated[
    list[str] | None,
    typer.Option(help="cores=2, gpus=0.5 or none. Repeat it for more; what is left out stays.", metavar="RESOURCE=N"),
]
Rule = Annotated[str | None, typer.Option(help="30s, 10m, 2h, 7d or a number; default: as usual.", metavar="VALUE")]
Node = Annotated[str, typer.Argument(help="A node, or one device of it, as `everloop node list` shows it.")]


@pools.callback()
def show_pool(
    context: typer.Context, pool: Pool = "default", data_dir: DataDir = None, as_json: AsJson = False
) -> None:
    """Show who holds what, the queues with quota, share and use, and who waits with the reason."""
    if context.invoked_subcommand is not None:
        if (pool, data_dir, as_json) != ("default", None, False):
            command = f"everloop pool {context.invoked_subcommand}"
            message = f"options of `{command}` stand after it"
            raise Invalid(message, field="pool", hint=f"{command} --data-dir DIR")
        return
    with connected(data_dir) as client:
        found = client.pool(pool)
    from everloop.cli import pool_tables

    shown(found, as_json, lambda _: pool_tables.pool(found))


@pools.command()
def policy(  # noqa: PLR0917  # options of a command, given by name
    grace: Rule = None,
    minimum_run_time: Rule = None,
    preemptions_a_day: Rule = None,
    reserve_after: Rule = None,
    starving: Rule = None,
    usage_half_life: Rule = None,
    usage_weight: Rule = None,
    saturation_percent: Rule = None,
    pool: Pool = "default",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Show by what the pool decides, or change it: each rule that is given counts from the next decision on."""
    given: Json = {
        "grace": grace,
        "minimum_run_time": minimum_run_time,
        "preemptions_a_day": preemptions_a_day,
        "reserve_after": reserve_after,
        "starving": starving,
        "usage_half_life": usage_half_life,
        "usage_weight": usage_weight,
        "saturation_percent": saturation_percent,
    }
    changes = {key: value for key, value in given.items() if value is not None}
    with connected(data_dir) as client:
        if changes:
            told_done(client.set_policy(changes, pool), as_json)
            return
        found = client.policy(pool)
    from everloop.cli import pool_tables

    shown(found, as_json, lambda _: pool_tables.policy(found))


@app.command()
def cost(
    by: Annotated[
        Literal["queue", "model", "lifecycle", "stage"], typer.Option("--by", help="What the sums are told by.")
    ] = "queue",
    since: Annotated[str, typer.Option("--since", help="A moment (ISO), or how long ago: 90m, 12h, 7d.")] = "7d",
    pool: Pool = "default",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Show what core and GPU time was for. All kinds together are capacity times time, exactly."""
    with connected(data_dir) as client:
        found = client.cost(by, since, pool)
    from everloop.cli import pool_tables

    shown(found, as_json, lambda _: pool_tables.cost(found))


# --- queues


@queue.command("list")
def list_queues(pool: Pool = "default", data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List the queue tree. `tree` of --json is what `everloop queue apply` takes."""
    with connected(data_dir) as client:
        found = client.queues(pool)
    from everloop.cli import pool_tables

    shown(found, as_json, lambda _: pool_tables.queues(found["items"]))


@queue.command("set")
def set_queue(  # noqa: PLR0917  # options of a command, given by name
    name: QueueName,
    quota: Amount = None,
    limit: Amount = None,
    weight: Annotated[int | None, typer.Option("--weight", help="Of what is left; 0: none of it.")] = None,
    priority: Annotated[int | None, typer.Option("--priority", help="Higher ones are served first.")] = None,
    parent: Annotated[str | None, typer.Option("--parent", help="The queue it is below; '' for none.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take it out of the tree.")] = False,
    only_try: OnlyTry = False,
    yes: Yes = False,
    pool: Pool = "default",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Change a queue, or add it. Says first what that does to running leases."""
    given: Json = {"quota": _amount(quota, "--quota"), "limit": _amount(limit, "--limit")}
    given |= {"weight": weight, "priority": priority, "parent": parent, "remove": remove or None}
    changes = {key: value for key, value in given.items() if value is not None}
    if not changes:
        raise Invalid("nothing is to be changed", field="QUEUE", hint="for instance --quota cores=2")
    with connected(data_dir) as client:
        _change(lambda only: client.set_queue(name, changes, only_try=only, pool=pool), only_try, yes, as_json)


@queue.command()
def apply(  # noqa: PLR0917  # options of a command, given by name
    file: Annotated[Path, typer.Argument(help="The whole tree in YAML or JSON.", metavar="FILE")],
    only_try: OnlyTry = False,
    yes: Yes = False,
    pool: Pool = "default",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make the queue tree as a file says; queues that it does not name are removed. Says first what that does."""
    with connected(data_dir) as client:
        _change(lambda only: client.apply_queues(file, only_try=only, pool=pool), only_try, yes, as_json)


def _change(make: Any, only_try: bool, yes: bool, as_json: bool) -> None:  # noqa: ANN401
    """Show what it would do, ask where it reaches running leases, do it."""
    from everloop.cli import pool_tables

    tried: Json = make(True)
    if only_try:
        shown(tried, as_json, lambda _: pool_tables.changed(tried))
        return
    reached = [effect for effect in tried["effects"] if effect["then"] != "safe"]
    if reached and not yes:
        if not as_json:
            shown(tried, as_json, lambda _: pool_tables.changed(tried))
        if not agreed(f"Change the queues, though {len(reached)} running lease(s) may be taken back then?"):
            typer.echo("nothing is changed", err=True)
            raise typer.Exit(1)
    made: Json = make(False)
    shown(made, as_json, lambda _: pool_tables.changed(made))


def _amount(given: list[str] | None, option: str) -> Any:  # noqa: ANN401
    """`cores=2` as `{"cores": "2"}`; the API reads the numbers."""
    if not given:
        return None
    if given == ["none"]:
        return "none"
    found: Json = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in ("cores", "gpus"):
            raise Invalid(f"{text!r} is no amount", field=option, hint="cores=2, gpus=0.5, or none")
        if name in found:
            raise Invalid(f"{name} is given twice", field=option)
        found[name] = value
    return found


# --- leases


@lease.command("list")
def list_leases(
    ended: Annotated[int, typer.Option("--ended", min=0, max=1000, help="How many ended ones, too.")] = 0,
    pool: Pool = "default",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """List who holds what."""
    with connected(data_dir) as client:
        rows = client.leases(pool, ended=ended)
    from everloop.cli import pool_tables

    shown(rows, as_json, lambda _: pool_tables.leases(rows))


@lease.command()
def explain(
    of: Annotated[str, typer.Argument(help="A lifecycle, a request, or a lease's token.", metavar="ID")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Say why somebody waits and what unblocks it, or how the lease stands that it has."""
    with connected(data_dir) as client:
        found = client.explain(of)
    print_json(found) if as_json else typer.echo(found["sentence"])


@lease.command()
def revoke(
    token: Annotated[int, typer.Argument(help="Of the lease, as `everloop lease list` shows it.", min=1)],
    reason: Annotated[str, typer.Option("--reason", "-m", help="Why; its lifecycle's page shows it.")],
    grace: Grace = 60,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Take a lease back: its job keeps a checkpoint, lets go, and waits at its old place."""
    with connected(data_dir) as client:
        found = client.revoke(token, reason, grace)
    told_done(found, as_json)


# --- nodes


@node.command("list")
def list_nodes(pool: Pool = "default", data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List machines, their devices, and what is used of them."""
    with connected(data_dir) as client:
        rows = client.nodes(pool)
    from everloop.cli import pool_tables

    shown(rows, as_json, lambda _: pool_tables.nodes(rows))


@node.command()
def drain(  # noqa: PLR0917  # options of a command, given by name
    name: Node,
    reason: Annotated[str, typer.Option("--reason", "-m", help="Why; who is told to let go reads it.")] = "",
    grace: Grace = 60,
    pool: Pool = "default",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Give a node no new leases, and tell those that it has to let go within the grace."""
    with connected(data_dir) as client:
        found = client.drain(name, reason, grace, pool)
    told_done(found, as_json)


@node.command()
def cordon(  # options of a command, given by name
    name: Node,
    reason: Annotated[str, typer.Option("--reason", "-m", help="Why; who looks at the pool reads it.")] = "",
    pool: Pool = "default",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Give a node, or one device, no new leases; those that it has go on. `undrain` opens it again."""
    with connected(data_dir) as client:
        found = client.cordon(name, reason, pool)
    told_done(found, as_json)


@node.command()
def undrain(name: Node, pool: Pool = "default", data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Let a node have leases again."""
    with connected(data_dir) as client:
        found = client.undrain(name, pool)
    told_done(found, as_json)
