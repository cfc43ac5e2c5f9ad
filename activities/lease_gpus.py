"""A pool's devices with a GPU: what the ledger and who submits must know before a level of isolation is promised."""

from sqlmodel import Session, col, select

from everloop.isolation import Part
from everloop.store import DeviceRow


def gpus(session: Session, pool: str) -> list[Part]:
    """Those that are there."""
    query = select(DeviceRow).where(DeviceRow.pool == pool, DeviceRow.milli_gpu > 0, col(DeviceRow.present))
    return [Part(row.name, row.milli_gpu, row.gpu_mib) for row in session.exec(query.order_by(DeviceRow.name)).all()]
