"""What something waits for."""

from datetime import datetime

from everloop.records.record import Record


class Wait(Record):
    """What something waits for, since when, and what unblocks it: one sentence for people."""

    what: str
    since: datetime
    unblocks: str

    def sentence(self) -> str:
        return f"Waiting for {self.what} since {self.since:%Y-%m-%d %H:%M:%S} UTC; {self.unblocks}."
