"""`everloop journal rebuild|verify`: the journal against Temporal's histories, from a process of its own."""

import dataclasses
import json
import sys

from activities import journal
from everloop.artifacts import Artifacts
from everloop.settings import Settings
from everloop.store import Store
from workers import connect


async def main(settings: Settings, action: str, *, as_json: bool = False) -> None:
    """Print what was done or found. Ends with 1 when `verify` finds a difference."""
    client = await connect.connect(settings, "journal", wait_seconds=5)
    store, artifacts = Store(settings.database), Artifacts(settings.artifacts, settings.disk_floor_bytes)
    if action == "rebuild":
        events = await journal.rebuild(client, store, artifacts)
        print(json.dumps({"events": events}) if as_json else f"made again from Temporal's histories: {events} events")  # noqa: T201
        return
    found = await journal.verify(client, store, artifacts)
    print(json.dumps(dataclasses.asdict(found)) if as_json else _said(found))  # noqa: T201
    if found.differences:
        sys.exit(1)


def _said(found: journal.Findings) -> str:
    looked = f"{found.events} events of {found.runs} runs and {found.rows} read-model rows"
    if not found.differences:
        return f"clean: {looked} are what Temporal's histories say"
    lines = [f"{len(found.differences)} differences in {looked}:", *(f"  {line}" for line in found.differences)]
    return "\n".join([*lines, "`everloop journal rebuild` makes journal and read models again from the histories"])
