"""How the time of devices and jobs went: facts that leased time is divided by (activities/lease_time/)."""

from sqlalchemy import BigInteger, Index
from sqlmodel import Field, SQLModel


class DeviceTimeRow(SQLModel, table=True):
    """What a device had to give, or was, for a stretch of time. Times are ms since 1970; `to_ms` 0: still."""

    __tablename__ = "device_time"
    __table_args__ = (Index("device_time_to", "pool", "to_ms"),)

    id: int | None = Field(default=None, primary_key=True)
    pool: str
    device: str
    kind: str
    """`there` (with these amounts), `lost` (its Dask worker is away)."""
    from_ms: int = Field(sa_type=BigInteger)
    to_ms: int = Field(default=0, sa_type=BigInteger)
    cores: int = 0
    milli_gpu: int = 0


class JobTimeRow(SQLModel, table=True):
    """An attempt of a job, as compute sees it. Compute writes it while the job runs, beside `metric`."""

    __tablename__ = "job_time"
    __table_args__ = (Index("job_time_token", "token"),)

    job: str = Field(primary_key=True)
    """`<run id>/<activity id>`."""
    attempt: int = Field(primary_key=True)
    token: int = Field(primary_key=True, sa_type=BigInteger)
    stage: str
    from_ms: int = Field(sa_type=BigInteger)
    to_ms: int = Field(sa_type=BigInteger)
    """When it ended, or was last known to run."""
    done: bool = False
    """It ended with a result."""
    ended: bool = False
    """Its end was seen: nobody was killed before it could be written."""
    checkpointed_ms: int = Field(default=0, sa_type=BigInteger)
    """When its newest durable checkpoint was written; 0: none."""
    writing_ms: int = 0
    """So long it was busy with writing checkpoints."""
    cpu_ms: int = Field(default=0, sa_type=BigInteger)
    """Processor time of all its processes, as far as it was seen; 0: not measured."""
    peak_mib: int = 0
    """The most that they held together; 0: not measured."""
