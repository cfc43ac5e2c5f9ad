"""`everloop journal rebuild|verify`: the journal against Temporal's histories, from a process of its own."""

import json
import sys

from activities import journal
from everloop.artifacts import Artifacts
from everloop.settings import Settings
from everloop.store import Store
from workers import connect


async def main(settings: Settings, action: str) -> None:
    """Print one JSON line. Ends with 1 when `verify` finds a difference."""
    client = await connect.connect(settings, "journal", wait_seconds=5)
    store, artifacts = Store(settings.database), Artifacts(settings.artifacts)
    if action == "rebuild":
        print(json.dumps({"events": await journal.rebuild(client, store, artifacts)}))  # noqa: T201
        return
    found = await journal.verify(client, store, artifacts)
    print(  # noqa: T201
        json.dumps(
            {"runs": found.runs, "events": found.events, "rows": found.rows, "differences": found.differences}
        )
    )
    if found.differences:
        sys.exit(1)
