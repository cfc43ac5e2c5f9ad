"""The command line: `everloop --help`. Each command that ends by itself has `--json`; errors are a line and a hint,
with `--json` an object on stderr. Workers, `api` and `serve` write their log as lines of JSON anyway.

Imports stand inside the commands: `--help` and completion must not load HTTP, YAML or Temporal.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everloop.errors import EverloopError, Invalid, sentence

if TYPE_CHECKING:
    from everloop.client import Client
    from everloop.settings import Settings

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

BATCH_ROWS = 1000


def main() -> None:
    """Entry point: errors of ours are one line, a hint and exit code 1; never a traceback."""
    try:
        app()
    except EverloopError as error:
        typer.echo(sentence(error, as_json="--json" in sys.argv), err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `everloop list | head`
        sys.stderr.close()
        sys.exit(0)


# --- the stack


@app.command()
def up(data_dir: DataDir = None, port_base: PortBase = None, as_json: AsJson = False) -> None:
    """Start the whole stack on this machine and mind it until Ctrl-C. With --json: its addresses, once it is ready."""
    _become("workers.dev", _settings(data_dir, port_base), *(["--json"] if as_json else []))


@app.command()
def down(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """End the stack of a data folder, and whatever is left of it."""
    from everloop import stack

    done = stack.down(_settings(data_dir))
    _print_json({"done": done}) if as_json else typer.echo(done)


@app.command()
def reset(data_dir: DataDir = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Forget everything: remove what is in the data folder."""
    from everloop import stack

    settings = _settings(data_dir)
    there = settings.data_dir.exists()
    if there and not yes and not _ask(f"Remove all data, models and history in {settings.data_dir}?"):
        typer.echo("nothing is removed", err=True)
        raise typer.Exit(1)
    stack.reset(settings)
    said = f"removed everything in {settings.data_dir}" if there else f"nothing is there: {settings.data_dir}"
    _print_json({"done": said, "removed": there}) if as_json else typer.echo(said)


@app.command()
def login(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Print a one-time link that signs your browser in."""
    with _client(data_dir) as client:
        url = client.login_url()
    _print_json({"url": url}) if as_json else typer.echo(url)


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


# --- lifecycles


@app.command()
def init(  # noqa: PLR0917  # options of a command, given by name
    path: Annotated[
        Path,
        typer.Argument(help="A file of rows, a folder of them, or a glob.", metavar="DATA"),
    ],
    target: Annotated[str, typer.Option("--target", help="Column to predict.")],
    time: Annotated[str | None, typer.Option("--time", help="Column with the event time.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Name of the model [default: from the file].")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write [default: MODEL.yaml].")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at a table and write a commented spec that submits as it is."""
    import yaml

    from everloop.init import draft

    text = draft(path, target, time, model)
    spec = yaml.safe_load(text)
    place = output or Path(f"{spec['model']}.yaml")
    on_stdout = str(place) == "-"
    if not on_stdout:
        _write_new(place, text, overwrite=force)
    if as_json:
        _print_json({"file": None if on_stdout else str(place), "spec": spec})
    else:
        typer.echo(text if on_stdout else f"wrote {place}; now: everloop submit {place}")


def _write_new(place: Path, text: str, *, overwrite: bool) -> None:
    if place.exists() and not overwrite:
        raise Invalid(f"{place} exists", field="--output", hint="--force overwrites it, --output FILE writes elsewhere")
    try:
        place.write_text(text)
    except OSError as error:
        raise Invalid(f"cannot write {place}: {error.strerror}", field="--output") from None


@app.command()
def submit(
    spec: Annotated[Path, typer.Argument(help="A spec in YAML or JSON.", metavar="SPEC")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it needs a person or has ended.")] = False,
    key: Annotated[
        str | None, typer.Option("--key", help="Its id [default: MODEL-<random>]; the same key is the same lifecycle.")
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Start a lifecycle."""
    with _client(data_dir) as client:
        found = client.submit(spec, key)
        if wait:
            found = _follow(client, found["id"], until="gate", quiet=as_json)
        elif not as_json:
            typer.echo(f"{found['id']}   (everloop watch {found['id']})")
    if as_json:
        _print_json(found)
    if wait:
        _exit_by(found)


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
    with _client(data_dir) as client:
        rows = client.list(limit, status, model)
    _show(rows, as_json, lambda console: console.lifecycles(rows))


@app.command()
def show(lifecycle: Lifecycle, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show a lifecycle: stages, what it waits for, metrics, what failed and what helps."""
    with _client(data_dir) as client:
        found = client.show(lifecycle)
    _show(found, as_json, lambda console: console.lifecycle(found))


@app.command()
def watch(lifecycle: Lifecycle, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Follow a lifecycle until it has ended or is parked. With --json: one line each time it changes."""
    with _client(data_dir) as client:
        found = _follow(client, lifecycle, until="end", lines=as_json)
    _exit_by(found)


@app.command()
def events(lifecycle: Lifecycle, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List what happened to a lifecycle, oldest first."""
    with _client(data_dir) as client:
        rows = client.events(lifecycle)
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        rest = {
            name: value for name, value in row["body"].items() if name not in ("type", "at", "seq", "spec") and value
        }
        typer.echo(f"{row['at']}  {row['type']}  {json.dumps(rest, ensure_ascii=False)}")


@app.command()
def logs(
    lifecycle: Lifecycle,
    stage: Annotated[str | None, typer.Option("--stage", help="Only this stage.")] = None,
    tail: Annotated[int, typer.Option("--tail", "-n", min=1, max=10_000, help="How many of the last lines.")] = 200,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Print the log of a stage: the one named, else the one that runs or ran last."""
    with _client(data_dir) as client:
        text = client.logs(lifecycle, stage, tail)
    if as_json:
        _print_json({"lifecycle": lifecycle, "stage": stage, "log": text})
        return
    typer.echo(text.rstrip() or "no log yet")


@app.command()
def approve(
    lifecycle: Lifecycle, comment: Comment = "", yes: Yes = False, data_dir: DataDir = None, as_json: AsJson = False
) -> None:
    """Look at the evidence and sign a yes: the version takes the model's traffic."""
    with _client(data_dir) as client:
        gate = client.approval(lifecycle)
        if not as_json:
            _show(gate, as_json, lambda console: console.evidence(gate))
        if not yes and not _ask("Approve this version for release?"):
            typer.echo("nothing is decided", err=True)
            raise typer.Exit(1)
        # The digest of what was shown: if the evidence changes meanwhile, the signature does not fit.
        answer = client.approve(lifecycle, comment, gate["evidence_digest"])
    _print_json(answer) if as_json else typer.echo(f"approved; follow the release: everloop watch {lifecycle}")


@app.command()
def reject(
    lifecycle: Lifecycle,
    comment: Annotated[str, typer.Option("--comment", "-m", help="Why not; everybody reads it.")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Sign a no: the version is not released."""
    with _client(data_dir) as client:
        answer = client.reject(lifecycle, comment)
    _print_json(answer) if as_json else typer.echo(f"rejected: {comment}")


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


# --- models


@app.command()
def models(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List models and the version that answers now."""
    with _client(data_dir) as client:
        rows = client.models()
    _show(rows, as_json, lambda console: console.models(rows))


@app.command("roll-back")
def roll_back(  # noqa: PLR0917  # options of a command, given by name
    model: Annotated[str, typer.Argument(help="Name of a released model.")],
    reason: Annotated[str, typer.Option("--reason", "-m", help="Why; everybody reads it.")],
    project: Project = "default",
    yes: Yes = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Send a model's traffic back to the version before its latest release. Signed, like an approval."""
    with _client(data_dir) as client:
        route = client.model(model, project)["route"]
        seen = route["release_seq"] if route else None
        to = route["back_to"] if route else None
        if not yes and to is not None and not _ask(f"Version {route['version']} answers now. Go back to version {to}?"):
            typer.echo("nothing is changed", err=True)
            raise typer.Exit(1)
        answer = client.roll_back(model, reason, seen or 0, project)
    said = f"version {answer['version']} of {model} answers again (release {answer['release_seq']})"
    _print_json(answer) if as_json else typer.echo(said)


@app.command()
def predict(  # noqa: PLR0917  # options of a command, given by name
    model: Annotated[str, typer.Argument(help="Name of a released model.")],
    rows: Annotated[
        str, typer.Argument(help="JSON ('{...}' or '[...]'), a .json, .jsonl or .csv file, or - for stdin.")
    ] = "-",
    event_time: Annotated[
        str | None, typer.Option("--event-time", help="When it happened (ISO) [default: now].")
    ] = None,
    project: Project = "default",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Ask the released version of a model."""
    with _client(data_dir) as client:
        asked = _rows(rows, lambda: client.schema(model, project))
        answers: list[Json] = []
        try:
            for at in range(0, len(asked), BATCH_ROWS):
                answer = _batch(client, model, asked, at, event_time=event_time, project=project)
                answers.append(answer)
                if not as_json:
                    _print_lines(answer.get("predictions") or [answer])
        finally:  # what was answered before a wrong row is in the log, and is said
            if as_json and answers:
                _print_json(answers[0] if len(answers) == 1 else answers)


def _batch(client: "Client", model: str, asked: list[Json], at: int, **options: Any) -> Json:  # noqa: ANN401
    """The answers to up to `BATCH_ROWS` rows from *at*. An error names the row by its place among all."""
    try:
        return client.predict(model, asked[at : at + BATCH_ROWS], **options)
    except EverloopError as error:
        if not at:
            raise
        said, field = (
            re.sub(r"\brows\[(\d+)\]", lambda found: f"rows[{int(found[1]) + at}]", text)
            for text in (str(error), error.field)
        )
        raise type(error)(f"{said}; the {at} rows before are answered", field=field, hint=error.hint) from None


def _print_lines(values: list[Json]) -> None:
    for value in values:
        typer.echo(json.dumps(value, default=str))


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="Name of a released model.")],
    project: Project = "default",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Let the model's monitor look now, and show its checks so far."""
    with _client(data_dir) as client:
        started = client.check(model, project)
        found = client.model(model, project)
    past = found["checks"]
    _show({"started": started, "checks": past}, as_json, lambda console: console.checks(past))


# --- one process each, as production runs them


@journal.command()
def rebuild(as_json: AsJson = False, data_dir: DataDir = None, port_base: PortBase = None) -> None:
    """Make the read models again from Temporal's histories."""
    _become("workers", _settings(data_dir, port_base), "journal", "rebuild", *(["--json"] if as_json else []))


@journal.command()
def verify(as_json: AsJson = False, data_dir: DataDir = None, port_base: PortBase = None) -> None:
    """Compare the read models with Temporal's histories; exit code 1 when they differ."""
    _become("workers", _settings(data_dir, port_base), "journal", "verify", *(["--json"] if as_json else []))


@keys.command("list")
def list_keys(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """List the keys that decisions are signed with: the present one, and those that were rotated out."""
    from everloop import signing

    rows = signing.listed(_settings(data_dir).keys_dir)
    _show(rows, as_json, lambda console: console.keys(rows))


@keys.command()
def rotate(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Make a new signing key. What was signed before stays valid, and open gates take the new key's decisions."""
    from everloop import signing

    made = signing.rotate(_settings(data_dir).keys_dir)
    _print_json({"id": made}) if as_json else typer.echo(f"decisions are signed with key {made} from now on")


@worker.command()
def control(data_dir: DataDir = None, port_base: PortBase = None) -> None:
    """Workflows and light activities."""
    _become("workers", _settings(data_dir, port_base), "control")


@worker.command()
def compute(data_dir: DataDir = None, port_base: PortBase = None) -> None:
    """Submits jobs to Dask."""
    _become("workers", _settings(data_dir, port_base), "compute")


@worker.command()
def scheduler(data_dir: DataDir = None, port_base: PortBase = None) -> None:
    """The Dask scheduler."""
    _become("workers", _settings(data_dir, port_base), "scheduler")


@worker.command()
def slot(
    name: Annotated[str, typer.Argument(help="Name of the device: cpu0, cpu1, ...")],
    data_dir: DataDir = None,
    port_base: PortBase = None,
) -> None:
    """One Dask worker on one device."""
    _become("workers", _settings(data_dir, port_base), "slot", name)


@app.command()
def api(data_dir: DataDir = None, port_base: PortBase = None) -> None:
    """Run the API and its pages."""
    _become("api", _settings(data_dir, port_base))


@app.command()
def serve(data_dir: DataDir = None, port_base: PortBase = None) -> None:
    """Run the prediction server."""
    _become("api", _settings(data_dir, port_base), "serve")


# --- shared by the commands


def _settings(data_dir: Path | None, port_base: int | None = None) -> "Settings":
    from everloop import settings

    return settings.load(data_dir=data_dir, port_base=port_base)


def _become(module: str, settings: "Settings", *arguments: str) -> None:
    """Replace this process by one of the engine's, with these settings. Does not return."""
    from dataclasses import replace

    from everloop import engine, stack

    if module != "workers.dev" and (running := stack.read(settings)):
        settings = replace(settings, port_base=running.port_base)  # talk to the stack of that folder
    engine.become(module, *arguments, extra=settings.environment())


@contextmanager
def _client(data_dir: Path | None) -> "Iterator[Client]":
    from everloop.client import Client

    with Client(data_dir=data_dir) as client:
        yield client


def _attend(data_dir: Path | None, as_json: bool, lifecycle: str, done: str, act: "Callable[[Client], Json]") -> None:
    with _client(data_dir) as client:
        answer = act(client)
    _print_json(answer) if as_json else typer.echo(f"{done}: {lifecycle}   (everloop watch {lifecycle})")


def _follow(client: "Client", lifecycle: str, *, until: str, quiet: bool = False, lines: bool = False) -> Json:
    """Show the lifecycle live until it needs a person (`gate`) or has ended or is parked (`end`)."""
    import time

    from rich.live import Live

    from everloop import console
    from everloop.client import RUNNING

    stops = {"needs_attention"} | ({"waiting_approval"} if until == "gate" else set())
    live = not quiet and not lines and console.out.is_terminal
    seen = ""
    with Live(console=console.out, refresh_per_second=4, transient=True) if live else _nothing() as display:
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
        console.out.print(console.lifecycle(found), crop=False)
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


def _exit_by(found: Json) -> None:
    """Exit code 1 when the lifecycle needs help or did not end by a decision."""
    if found["status"] in ("needs_attention", "failed", "terminated", "cancelled", "aborted"):
        raise typer.Exit(1)


def _show(value: object, as_json: bool, render: Callable[[Any], Any]) -> None:
    if as_json:
        _print_json(value)
        return
    from everloop import console

    console.out.print(render(console), crop=False)


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, default=str, ensure_ascii=False))


def _ask(question: str) -> bool:
    """Yes or no. Without a terminal there is nobody to ask: raises `Invalid` that names `--yes`."""
    if not sys.stdin.isatty():
        raise Invalid(f"{question} There is no terminal to ask on", field="--yes", hint="give --yes to say so")
    return typer.confirm(question)


def _rows(text: str, schema: Callable[[], Json]) -> list[Json]:
    """Rows from JSON text, a file or stdin. *schema* answers the model's: a CSV alone does not say what it means."""
    if text.lstrip()[:1] in ("{", "["):
        return _parsed(text, "the argument")
    if text == "-":
        return _parsed(sys.stdin.read(), "stdin")
    path = Path(text)
    try:
        content = _decoded(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(
            f"cannot read {path}: {getattr(error, 'strerror', None) or 'not text'}",
            field="rows",
            hint="give JSON, or a .json, .jsonl, .csv or .tsv file",
        ) from None
    if path.suffix.lower() in (".csv", ".tsv"):
        from everloop import rows

        return rows.from_csv(content, path.name, schema())
    return _parsed(content, str(path))


def _decoded(content: bytes) -> str:
    """A file's text in the encoding that training would find. Raises `UnicodeDecodeError`."""
    from everloop import dialect

    try:
        content.decode()
    except UnicodeDecodeError:
        utf8 = False
    else:
        utf8 = True
    encoding = dialect.encoding_of(content[: dialect.HEAD], ascii_or_utf8=utf8)
    return content.decode(encoding or "utf-8").removeprefix("\ufeff")


def _parsed(text: str, where: str) -> list[Json]:
    try:
        value = json.loads(text)
    except ValueError:
        try:
            value = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise Invalid(f"{where} is not JSON: {error}", field="rows") from None
    rows = value if isinstance(value, list) else [value]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise Invalid(f"{where} must hold one row ({{...}}) or a list of rows", field="rows")
    return rows


if __name__ == "__main__":
    main()
