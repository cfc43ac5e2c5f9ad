"""Models: list them, ask the released version, look at drift, go back."""

import json
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everloop.cli.options import AsJson, DataDir, Json, Project, Yes, app
from everloop.cli.rows import rows_of
from everloop.cli.shared import agreed, connected, print_json, shown
from everloop.errors import EverloopError

if TYPE_CHECKING:
    from everloop.client import Client

BATCH_ROWS = 1000


@app.command()
def models(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List models and the version that answers now."""
    with connected(data_dir) as client:
        rows = client.models()
    shown(rows, as_json, lambda console: console.models(rows))


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
    with connected(data_dir) as client:
        route = client.model(model, project)["route"]
        seen = route["release_seq"] if route else None
        to = route["back_to"] if route else None
        if (
            not yes
            and to is not None
            and not agreed(f"Version {route['version']} answers now. Go back to version {to}?")
        ):
            typer.echo("nothing is changed", err=True)
            raise typer.Exit(1)
        answer = client.roll_back(model, reason, seen or 0, project)
    said = f"version {answer['version']} of {model} answers again (release {answer['release_seq']})"
    print_json(answer) if as_json else typer.echo(said)


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
    with connected(data_dir) as client:
        asked = rows_of(rows, lambda: client.schema(model, project))
        answers: list[Json] = []
        try:
            for at in range(0, len(asked), BATCH_ROWS):
                answer = _batch(client, model, asked, at, event_time=event_time, project=project)
                answers.append(answer)
                if not as_json:
                    _print_lines(answer.get("predictions") or [answer])
        finally:  # what was answered before a wrong row is in the log, and is said
            if as_json and answers:
                print_json(answers[0] if len(answers) == 1 else answers)


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
def rearm(
    model: Annotated[str, typer.Argument(help="Name of a watched model.")],
    project: Project = "default",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Let the model's monitor cause retrainings again, after those before have brought no better version."""
    with connected(data_dir) as client:
        told = client.rearm(model, project)
    shown(told, as_json, lambda _: told["message"])


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="Name of a released model.")],
    project: Project = "default",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Let the model's monitor look now, and show its checks so far."""
    with connected(data_dir) as client:
        started = client.check(model, project)
        found = client.model(model, project)
    past = found["checks"]
    shown({"started": started, "checks": past}, as_json, lambda console: console.checks(past))
