"""What a lifecycle asks for from its pool: amounts for each stage, its queue, and its rights there.

Everything has a default: a spec that says nothing is served as before there were queues.
"""

import re
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from everloop import queues
from everloop.errors import Invalid

UNITS = {"": 1, "MiB": 1, "GiB": 1 << 10, "TiB": 1 << 20}
AMOUNT = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?(MiB|GiB|TiB|)")
MOST_MIB = 1 << 30
WHOLE_GPU = 1000
"""In thousandths."""


def mebibytes(value: Any) -> Any:  # noqa: ANN401  # what a person wrote
    """MiB of `8GiB`, `512 MiB` or a number of MiB. Raises `ValueError`."""
    found = AMOUNT.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        if isinstance(value, str):
            raise ValueError(f"{value[:40]!r} is no amount of memory, such as 8GiB or 512MiB")
        return value
    return int(float(found[1]) * UNITS[found[2]])


Mebibytes = Annotated[int, BeforeValidator(mebibytes), Field(ge=1, le=MOST_MIB)]
JobStage = Literal["snapshot", "validate", "prepare", "train", "evaluate", "refit", "export"]


class Amounts(BaseModel):
    """Of one job. What is left out: as many cores as the device gives to who does not ask, and their memory."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    cpus: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Cores; the job runs as many threads."""
    memory: Mebibytes | None = None
    """MiB, or with a unit: 8GiB. A job that holds more is ended."""
    gpus: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of one GPU: 1, or a part of it. Left out: a whole one where the pool has any."""
    gpu_memory: Mebibytes | None = None
    """MiB of the GPU, or with a unit."""
    members: Literal[1] | None = None
    """Processes of one job; a job is one process for now."""


class Resources(Amounts):
    """For every stage; `stages` says what some of them ask for instead."""

    stages: dict[JobStage, Amounts] = {}

    def of(self, stage: str) -> Amounts:
        """What *stage* asks for: its own words before those for all."""
        own = next((amounts for name, amounts in self.stages.items() if name == stage), Amounts())
        said = {name: getattr(self, name) for name in Amounts.model_fields} | own.model_dump(exclude_none=True)
        return Amounts.model_construct(**said)


def _queue(name: str) -> str:
    try:
        queues.check_name(name)
    except Invalid as error:
        raise ValueError(f"{name[:80]!r} cannot be a queue's name: {error.hint}") from None
    return name


Queue = Annotated[str, AfterValidator(_queue)]
Priority = Annotated[int, Field(ge=0, le=1000)]
"""Within a queue: 50 for batch work, 75 for people who wait, 100 for what must not wait."""
MaxRuntime = Annotated[timedelta, Field(ge=timedelta(seconds=1), le=timedelta(days=366))]
