"""Lifecycles: draft a spec, submit it, look, decide, tell a parked one what to do."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from everloop.cli.options import AsJson, Comment, DataDir, Json, Lifecycle, Reason, Yes, app
from everloop.cli.shared import agreed, connected, print_json, shown
from everloop.errors import Invalid

if TYPE_CHECKING:
    from everloop.client import Client


@app.command()
def init(  # noqa: PLR0917  # options of a command, given by name
    path: Annotated[
        Path,
        typer.Argument(help="A file of rows, a folder of them, or a glob.", metavar="DATA"),
    ],
    target: Annotated[str, typer.Option("--target", help="Column to predict.")],
    time: Annotated[str | None, typer.Option("--time", help="Column with the event time.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Name of the model [default: from the file].")] = None,
    encoding: Annotated[
        str | None, typer.Option("--encoding", help="Of text files, where it is not found: cp1251, gb18030, ...")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write [default: MODEL.yaml].")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at a table and write a commented spec that submits as it is."""
    import yaml

    from everloop.init import ASKED, ASKS, draft

    text = draft(path, target, time, model, encoding)
    spec = yaml.safe_load(text)
    place = output or Path(f"{spec['model']}.yaml")
    on_stdout = str(place) == "-"
    if not on_stdout:
        _write_new(place, text, overwrite=force)
    asks = ASKS in text.splitlines()
    if as_json:
        print_json({"file": None if on_stdout else str(place), "spec": spec, "asks": [ASKED] if asks else []})
        return
    typer.echo(text if on_stdout else f"wrote {place}; now: everloop submit {place}{f' --set {ASKED}' if asks else ''}")
    if asks:
        typer.echo(f"--set {ASKED} leaves out the rows without a target; the draft says how many there are", err=True)


def _write_new(place: Path, text: str, *, overwrite: bool) -> None:
    if place.exists() and not overwrite:
        raise Invalid(f"{place} exists", field="--output", hint="--force overwrites it, --output FILE writes elsewhere")
    try:
        place.write_text(text)
    except OSError as error:
        raise Invalid(f"cannot write {place}: {error.strerror}", field="--output") from None


@app.command()
def submit(  # noqa: PLR0917  # options of a command, given by name
    spec: Annotated[Path, typer.Argument(help="A spec in YAML or JSON.", metavar="SPEC")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it needs a person or has ended.")] = False,
    key: Annotated[
        str | None, typer.Option("--key", help="Its id [default: MODEL-<random>]; the same key is the same lifecycle.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Over what the spec says: --set target_missing=drop.", metavar="KEY=VALUE"),
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Start a lifecycle."""
    with connected(data_dir) as client:
        found = client.submit(spec, key, given_changes(changes or []))
        if wait:
            found = follow(client, found["id"], until="gate", quiet=as_json)
        elif not as_json:
            typer.echo(f"{found['id']}   (everloop watch {found['id']})")
    if as_json:
        print_json(found)
    if wait:
        exit_by(found)


def given_changes(given: list[str]) -> Json:
    """`training.rounds=50` as a name and a value, which is read as in the spec."""
    import yaml

    found: Json = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise Invalid(f"{text!r} is no KEY=VALUE", field="--set", hint="for instance --set target_missing=drop")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise Invalid(f"{value!r} is no value", field="--set", hint="put quotes around it") from None
    return found


@app.command()
def fork(  # noqa: PLR0917  # options of a command, given by name
    lifecycle: Lifecycle,
    stage: Annotated[str, typer.Option("--from", help="The first stage that is done anew.", metavar="STAGE")],
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A field of the spec: training.rounds=800. Repeat it for more.", metavar="KEY=VALUE"
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="The new one's id [default: LIFECYCLE-fork-<random>].")
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Start a lifecycle that keeps everything before a stage of another one."""
    given = given_changes(changes or [])
    with connected(data_dir) as client:
        found = client.fork(lifecycle, stage, given, key)
    print_json(found) if as_json else typer.echo(f"{found['id']}   (everloop watch {found['id']})")


@app.command("list")
def list_lifecycles(
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000)] = 20,
    status: Annotated[
        str | None, typer.Option("--status", help="running, waiting_approval, needs_attention, released, ...")
    ] = None,
    model: Annotated[str | None, typer.Option("--model")] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """List lifecycles, newest first."""
    with connected(data_dir) as client:
        rows = client.list(limit, status, model)
    shown(rows, as_json, lambda console: console.lifecycles(rows))


@app.command()
def show(lifecycle: Lifecycle, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show a lifecycle: stages, what it waits for, metrics, what failed and what helps."""
    with connected(data_dir) as client:
        found = client.show(lifecycle)
    shown(found, as_json, lambda console: console.lifecycle(found))


@app.command()
def watch(lifecycle: Lifecycle, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Follow a lifecycle until it has ended or is parked. With --json: one line each time it changes."""
    with connected(data_dir) as client:
        found = follow(client, lifecycle, until="end", lines=as_json)
    exit_by(found)


@app.command()
def events(lifecycle: Lifecycle, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List what happened to a lifecycle, oldest first."""
    with connected(data_dir) as client:
        rows = client.events(lifecycle)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        rest = {
            name: value for name, value in row["body"].items() if name not in ("type", "at", "seq", "spec") and value
        }
        typer.echo(f"{row['at']}  {row['type']}  {json.dumps(rest, ensure_ascii=False)}")


Rank = Annotated[int, typer.Option("--rank", min=0, help="Of a stage that several processes run together.")]


@app.command()
def logs(  # noqa: PLR0917  # options of a command, given by name
    lifecycle: Lifecycle,
    stage: Annotated[str | None, typer.Option("--stage", help="Only this stage.")] = None,
    tail: Annotated[int, typer.Option("--tail", "-n", min=1, max=10_000, help="How many of the last lines.")] = 200,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on, stage after stage, until it waits for a person or has ended.")
    ] = False,
    rank: Rank = 0,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Print the log of a stage: the one named, else the one that runs or ran last."""
    with connected(data_dir) as client:
        if follow:
            _follow_logs(client.logs(lifecycle, stage, tail, follow=True), as_json=as_json)
            return
        text = client.logs(lifecycle, stage, tail, rank=rank)
    if as_json:
        print_json({"lifecycle": lifecycle, "stage": stage, "log": text})
        return
    typer.echo(text.rstrip() or "no log yet")


def _follow_logs(pieces: Iterator[Json], *, as_json: bool) -> None:
    """Each piece as it comes; a line on stderr says whose it is. With --json a line for each piece."""
    shown_of: tuple[str, int] | None = None
    for piece in pieces:
        if as_json:
            typer.echo(json.dumps(piece, ensure_ascii=False))
        elif "text" in piece:
            of = piece["stage"], piece["attempt"]
            if of != shown_of:
                typer.echo(f"--- {of[0]}{f', attempt {of[1]}' if of[1] > 1 else ''}", err=True)
            shown_of = of
            typer.echo(piece["text"], nl=not piece["text"].endswith("\n"))
        else:
            typer.echo(f"--- {piece['status'].replace('_', ' ')}. {piece['wait']}".rstrip(), err=True)


@app.command()
def curves(lifecycle: Lifecycle, rank: Rank = 0, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Draw how the last training of a lifecycle has learned, on train and validation rows."""
    with connected(data_dir) as client:
        rows = client.curves(lifecycle, rank)
    shown(rows, as_json, lambda console: console.curves(rows))


@app.command()
def data(
    lifecycle: Lifecycle,
    rejected: Annotated[
        bool, typer.Option("--rejected", help="Print the values that are not as the spec declares, as CSV.")
    ] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Show what a lifecycle has read: each column, what it holds, what the rules changed, rows without a target."""
    with connected(data_dir) as client:
        if rejected:
            text = client.rejected(lifecycle)
            print_json({"lifecycle": lifecycle, "rejected": text}) if as_json else typer.echo(text, nl=False)
            return
        found = client.data(lifecycle)
    shown(found, as_json, lambda console: console.data(found))


@app.command()
def approve(
    lifecycle: Lifecycle, comment: Comment = "", yes: Yes = False, data_dir: DataDir = None, as_json: AsJson = False
) -> None:
    """Look at the evidence and sign a yes: the version takes the model's traffic."""
    with connected(data_dir) as client:
        gate = client.approval(lifecycle)
        if not as_json:
            shown(gate, as_json, lambda console: console.evidence(gate))
        if not yes and not agreed("Approve this version for release?"):
            typer.echo("nothing is decided", err=True)
            raise typer.Exit(1)
        # The digest of what was shown: if the evidence changes meanwhile, the signature does not fit.
        answer = client.approve(lifecycle, comment, gate["evidence_digest"])
    print_json(answer) if as_json else typer.echo(f"approved; follow the release: everloop watch {lifecycle}")


@app.command()
def reject(
    lifecycle: Lifecycle,
    comment: Annotated[str, typer.Option("--comment", "-m", help="Why not; everybody reads it.")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Sign a no: the version is not released."""
    with connected(data_dir) as client:
        answer = client.reject(lifecycle, comment)
    print_json(answer) if as_json else typer.echo(f"rejected: {comment}")


@app.command()
def retry(lifecycle: Lifecycle, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Try the failed stage of a parked lifecycle again."""
    _attend(data_dir, as_json, lifecycle, "trying again", lambda client: client.retry(lifecycle))


@app.command()
def skip(lifecycle: Lifecycle, reason: Reason = "", data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Go on without the failed stage, where the lifecycle can do without it."""
    _attend(data_dir, as_json, lifecycle, "skipped", lambda client: client.skip(lifecycle, reason))


@app.command()
def abort(lifecycle: Lifecycle, reason: Reason = "", data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """End a parked lifecycle."""
    _attend(data_dir, as_json, lifecycle, "aborted", lambda client: client.abort(lifecycle, reason))


@app.command()
def cancel(lifecycle: Lifecycle, reason: Reason = "", data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Stop a running lifecycle and its jobs."""
    _attend(data_dir, as_json, lifecycle, "cancel requested", lambda client: client.cancel(lifecycle, reason))


@app.command()
def pause(lifecycle: Lifecycle, reason: Reason = "", data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """End the running job at a checkpoint and give its slot to others, until `resume`."""
    _attend(data_dir, as_json, lifecycle, "paused", lambda client: client.pause(lifecycle, reason))


@app.command()
def resume(lifecycle: Lifecycle, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Let a paused lifecycle go on."""
    _attend(data_dir, as_json, lifecycle, "going on", lambda client: client.resume(lifecycle))


def _attend(data_dir: Path | None, as_json: bool, lifecycle: str, done: str, act: "Callable[[Client], Json]") -> None:
    with connected(data_dir) as client:
        answer = act(client)
    print_json(answer) if as_json else typer.echo(f"{done}: {lifecycle}   (everloop watch {lifecycle})")


def follow(client: "Client", lifecycle: str, *, until: str, quiet: bool = False, lines: bool = False) -> Json:
    """Show the lifecycle live until it needs a person (`gate`) or has ended or is parked (`end`)."""
    import time

    from rich.live import Live

    from everloop import console, terminal
    from everloop.client import RUNNING

    stops = {"needs_attention"} | ({"waiting_approval"} if until == "gate" else set())
    live = not quiet and not lines and terminal.out.is_terminal
    seen = ""
    with Live(console=terminal.out, refresh_per_second=4, transient=True) if live else _nothing() as display:
        while True:
            found = client.show(lifecycle)
            if live and isinstance(display, Live):
                display.update(console.lifecycle(found))
            state = json.dumps(
                [found["status"], found.get("stage"), found.get("wait"), found.get("wait_what")], default=str
            )
            if state != seen and not live and not quiet:
                _tell(found, lines)
            seen = state
            if found["status"] not in RUNNING or found["status"] in stops:
                break
            time.sleep(0.5)
    if not quiet and not lines:
        terminal.out.print(console.lifecycle(found), crop=False)
    return found


def _tell(found: Json, lines: bool) -> None:
    """One line about a change, for logs and scripts."""
    if lines:
        typer.echo(json.dumps(found, default=str))
        return
    typer.echo(f"{found['id']}: {found['status'].replace('_', ' ')} {found.get('stage') or ''}".rstrip())


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def exit_by(found: Json) -> None:
    """Exit code 1 when the lifecycle needs help or did not end by a decision."""
    if found["status"] in ("needs_attention", "failed", "terminated", "cancelled", "aborted"):
        raise typer.Exit(1)
