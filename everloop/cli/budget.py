"""Budgets and prices, and advice from what jobs used of what they leased."""

from typing import Annotated

import typer

from everloop.cli.options import AsJson, DataDir, Json, Pool, app, budget
from everloop.cli.shared import connected, shown, told_done
from everloop.errors import Invalid

Bound = Annotated[str | None, typer.Option(help="A number, or none. What is left out stays.", metavar="N")]


@budget.command("list")
def list_budgets(pool: Pool = "default", data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List who may spend what, what is spent of it, and what time costs."""
    with connected(data_dir) as client:
        found = client.budgets(pool)
    from everloop.cli import pool_tables

    shown(found, as_json, lambda _: pool_tables.budgets(found))


@budget.command("set")
def set_budget(  # noqa: PLR0917  # options of a command, given by name
    name: Annotated[str, typer.Argument(help="A queue, with all below it.", metavar="[QUEUE]")] = "",
    lifecycle: Annotated[str, typer.Option("--lifecycle", help="A lifecycle instead.")] = "",
    core_hours: Bound = None,
    gpu_hours: Bound = None,
    money: Bound = None,
    restart: Annotated[bool, typer.Option("--restart", help="What was spent so far counts no more.")] = False,
    pool: Pool = "default",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Set, raise or take away a budget. Who waits for it goes on by itself."""
    if bool(name) == bool(lifecycle):
        raise Invalid("name a queue, or a lifecycle with --lifecycle", field="QUEUE")
    given: Json = {"core_hours": core_hours, "gpu_hours": gpu_hours, "money": money}
    changes: Json = {key: value for key, value in given.items() if value is not None}
    if restart:
        changes["restart"] = True
    if not changes:
        raise Invalid("nothing is to be changed", field="QUEUE", hint="for instance --core-hours 100")
    with connected(data_dir) as client:
        scope = "lifecycle" if lifecycle else "queue"
        found = client.set_budget(scope, lifecycle or name, changes, pool)
    told_done(found, as_json)


@budget.command("prices")
def set_prices(  # noqa: PLR0917  # options of a command, given by name
    core_hour: Annotated[str, typer.Option("--core-hour", help="What an hour of a core costs.")],
    gpu_hour: Annotated[str, typer.Option("--gpu-hour", help="What an hour of a GPU costs.")] = "0",
    currency: Annotated[str, typer.Option("--currency")] = "EUR",
    pool: Pool = "default",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Set the price list, from now on: what was before is priced as it was."""
    with connected(data_dir) as client:
        found = client.set_prices(core_hour, gpu_hour, currency, pool)
    told_done(found, as_json)


@app.command()
def advice(
    since: Annotated[str, typer.Option("--since", help="A moment (ISO), or how long ago: 90m, 12h, 7d.")] = "30d",
    pool: Pool = "default",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Say which stages lease more or less than they use, by model, and what to write into the spec."""
    with connected(data_dir) as client:
        found = client.advice(since, pool)
    from everloop.cli import pool_tables

    shown(found, as_json, lambda _: pool_tables.advice(found["items"]))
