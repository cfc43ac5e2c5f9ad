"""What commands share: settings, a client, printing, asking."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from everloop.errors import Invalid

if TYPE_CHECKING:
    from everloop.client import Client
    from everloop.settings import Settings


def settings_of(data_dir: Path | None, port_base: int | None = None) -> "Settings":
    from everloop import settings

    return settings.load(data_dir=data_dir, port_base=port_base)


def become(module: str, settings: "Settings", *arguments: str) -> None:
    """Replace this process by one of the engine's, with these settings. Does not return."""
    from dataclasses import replace

    from everloop import engine, stack

    if module != "workers.dev" and (running := stack.read(settings)):
        settings = replace(settings, port_base=running.port_base)  # talk to the stack of that folder
    engine.become(module, *arguments, extra=settings.environment())


@contextmanager
def connected(data_dir: Path | None) -> "Iterator[Client]":
    from everloop.client import Client

    with Client(data_dir=data_dir) as client:
        yield client


def shown(value: object, as_json: bool, render: Callable[[Any], Any]) -> None:
    if as_json:
        print_json(value)
        return
    from everloop import console, terminal

    terminal.out.print(render(console), crop=False)


def told_done(found: Mapping[str, Any], as_json: bool) -> None:
    """What an order to a pool has done."""
    print_json(found) if as_json else typer.echo(found["done"])


def print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, default=str, ensure_ascii=False))


def agreed(question: str) -> bool:
    """Yes or no. Without a terminal there is nobody to ask: raises `Invalid` that names `--yes`."""
    if not sys.stdin.isatty():
        raise Invalid(f"{question} There is no terminal to ask on", field="--yes", hint="give --yes to say so")
    return typer.confirm(question)
