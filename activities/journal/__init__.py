"""The journal: append from workflows, repair after a Reset, archive, rebuild and verify.

Temporal's history is the truth: an event is in it before it is here, and everything here can be made again from it.
"""

from activities.journal.control import JournalOnControl
from activities.journal.findings import Findings, rebuild, verify
from activities.journal.histories import CLOSED
from activities.journal.rows import Run, append

__all__ = ["CLOSED", "Findings", "JournalOnControl", "Run", "append", "rebuild", "verify"]
