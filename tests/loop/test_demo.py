"""The demo, as a newcomer without a terminal runs it: a year of data by the public doors, then a look back."""

import json
import signal
import subprocess
import sys

import pytest

from everloop import stack
from everloop.settings import Settings
from tests.loop.test_stack import Launcher, everloop

ROWS = "15000"
"""With far fewer, a month is too small to prove that it differs."""
MONTHS = ["Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


@pytest.mark.timeout(400)
def test_the_demo_goes_through_the_year_leaves_no_process_and_can_be_looked_at_again(here: Settings) -> None:
    place = ["--data-dir", str(here.data_dir), "--port-base", str(here.port_base)]
    done = subprocess.run(
        [sys.executable, "-m", "everloop.cli", "demo", "--yes", "--json", "--rows", ROWS, *place],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    retrained = {month["lifecycle"] for month in told["months"] if month["lifecycle"]}

    assert [month["name"] for month in told["months"]] == MONTHS
    assert all(0 <= month["live"] <= 1 and 0 <= month["share"] <= 1 for month in told["months"])
    assert retrained  # by drift: nobody submitted them
    assert told["retrainings"] == len(retrained)
    assert "what happened" in done.stderr
    assert stack.members(here) == []

    again = Launcher(here)
    again.ready()
    listed = {one["id"]: one["status"] for one in json.loads(everloop(here, "list", "--json").stdout)}
    assert {told["first"], *retrained} <= listed.keys()
    assert listed[told["first"]] == "released"
    verified = json.loads(everloop(here, "journal", "verify", "--json").stdout)
    assert verified["differences"] == []
    again.process.send_signal(signal.SIGINT)
    assert again.process.wait(60) == 0
