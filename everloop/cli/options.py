"""The application, its groups, and the options that commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer

Json = dict[str, Any]

app = typer.Typer(
    name="everloop",
    help="Durable, closed-loop machine learning on Temporal.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: starts faster, reads the same everywhere
)
journal = typer.Typer(help="The journal of domain events against Temporal's histories.", no_args_is_help=True)
keys = typer.Typer(help="The keys that decisions are signed with.", no_args_is_help=True)
worker = typer.Typer(help="Run one worker process here, as `everloop up` does.", no_args_is_help=True)
queue = typer.Typer(help="The queues of a pool: what each gets, may have, and has.", no_args_is_help=True)
pools = typer.Typer(help="Who holds what of a pool, and by what it decides.", invoke_without_command=True)
lease = typer.Typer(help="Who holds what of a pool, and why somebody waits.", no_args_is_help=True)
budget = typer.Typer(help="Who may spend how much, and what time costs.", no_args_is_help=True)
node = typer.Typer(help="The machines of a pool.", no_args_is_help=True)
app.add_typer(queue, name="queue")
app.add_typer(pools, name="pool")
app.add_typer(lease, name="lease")
app.add_typer(budget, name="budget")
app.add_typer(node, name="node")
app.add_typer(journal, name="journal")
app.add_typer(keys, name="keys")
app.add_typer(worker, name="worker")

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Data folder of the stack [EVERLOOP_DATA_DIR, default ~/.everloop]", metavar="DIR"),
]
PortBase = Annotated[
    int | None,
    typer.Option("--port-base", min=1024, max=65000, help="First of six ports [EVERLOOP_PORT_BASE, default 7700]"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Lifecycle = Annotated[str, typer.Argument(help="Id of a lifecycle, as `everloop list` shows it.", metavar="LIFECYCLE")]
Project = Annotated[str, typer.Option("--project", help="Project of the model.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Comment = Annotated[str, typer.Option("--comment", "-m", help="Written on the decision, for everybody to read.")]
Reason = Annotated[str, typer.Option("--reason", help="Written on the record.")]
Pool = Annotated[str, typer.Option("--pool", help="Name of the pool.")]
Grace = Annotated[
    int,
    typer.Option("--grace", min=0, max=86_400, help="Seconds for a checkpoint; then it is ended.", metavar="SECONDS"),
]
