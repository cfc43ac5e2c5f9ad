"""Which Dask workers there are, for jobs on a scheduler that is not ours.

Ours gives a job up when its worker dies; another one would run it again by itself, or wait for its worker for ever.
"""

import asyncio
import time
from dataclasses import dataclass, field

from distributed import Client
from distributed.comm import CommClosedError

LOOK_SECONDS = 1.0
ANSWER_SECONDS = 5.0


@dataclass
class Roster:
    """Of one scheduler, looked at once a second however many jobs ask."""

    away_seconds: float
    """A device that is not there for so long is taken for lost."""
    _seen: dict[str, str] = field(default_factory=dict)
    _looked: float = -LOOK_SECONDS
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def lost(self, client: Client, device: str) -> str:
        """Until the worker that *device* has now is gone, or none has come in time: what has happened to it."""
        first, missed = "", time.monotonic()
        while True:
            now = (await self._addresses(client)).get(device, "")
            first = first or now
            if first and now != first:
                return f"its Dask worker at {first} is gone"
            if not first and time.monotonic() - missed > self.away_seconds:
                return f"no Dask worker has been there for {self.away_seconds:.0f} s"
            await asyncio.sleep(LOOK_SECONDS)

    async def _addresses(self, client: Client) -> dict[str, str]:
        """By device. As they were where the scheduler does not answer: that it is lost the client says itself."""
        async with self._looking:
            if time.monotonic() - self._looked >= LOOK_SECONDS:
                try:
                    told = await asyncio.wait_for(client.scheduler.identity(n_workers=-1), ANSWER_SECONDS)
                    self._seen = {str(each["name"]): address for address, each in told["workers"].items()}
                except (OSError, TimeoutError, CommClosedError):
                    await asyncio.sleep(LOOK_SECONDS)
                self._looked = time.monotonic()
            return self._seen
