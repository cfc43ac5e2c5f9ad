"""The tables, and how to reach them.

Four kinds, each with its one writer (on SQLite): the journal and its read models (control), the ledgers
for which SQL is the authority (control), progress (compute), identity (the API).
Read models hold nothing that `views.fold` cannot make again from the journal.
"""

from sqlmodel import SQLModel

from everloop.store.approval import ApprovalRow
from everloop.store.budget import BudgetRow, PriceRow
from everloop.store.columns import UtcDateTime, document, moment
from everloop.store.door import Store
from everloop.store.drift import DriftRow, LabelsRow, MonitorRow, PerformanceRow, TriggerRow
from everloop.store.identity import AuditRow, CredentialRow
from everloop.store.journal import AlarmRow, HistoryRow, JournalRow
from everloop.store.lease import (
    DEFAULT_QUEUE,
    LEASE_TOKENS,
    CounterRow,
    DeviceRow,
    LeaseMemberRow,
    LeaseRequestRow,
    LeaseRow,
    LeaseTimeRow,
    PoolDecisionRow,
    PoolPolicyRow,
    PoolRow,
    QueueRow,
    ReservationRow,
    ResultRow,
)
from everloop.store.lifecycle import LifecycleRow, StageRow
from everloop.store.metric import MetricRow
from everloop.store.predictions import LogHourRow, LogPartRow, LogStateRow
from everloop.store.registry import VersionRow
from everloop.store.release import ReleaseRow, RouteChangeRow, RouteRow
from everloop.store.search import StudyRow, TrialRow
from everloop.store.time import DeviceTimeRow, JobTimeRow

READ_MODELS: tuple[type[SQLModel], ...] = (LifecycleRow, StageRow, ApprovalRow, ReleaseRow, DriftRow)

__all__ = [
    "DEFAULT_QUEUE",
    "LEASE_TOKENS",
    "READ_MODELS",
    "AlarmRow",
    "ApprovalRow",
    "AuditRow",
    "BudgetRow",
    "CounterRow",
    "CredentialRow",
    "DeviceRow",
    "DeviceTimeRow",
    "DriftRow",
    "HistoryRow",
    "JobTimeRow",
    "JournalRow",
    "LabelsRow",
    "LeaseMemberRow",
    "LeaseRequestRow",
    "LeaseRow",
    "LeaseTimeRow",
    "LifecycleRow",
    "LogHourRow",
    "LogPartRow",
    "LogStateRow",
    "MetricRow",
    "MonitorRow",
    "PerformanceRow",
    "PoolDecisionRow",
    "PoolPolicyRow",
    "PoolRow",
    "PriceRow",
    "QueueRow",
    "ReleaseRow",
    "ReservationRow",
    "ResultRow",
    "RouteChangeRow",
    "RouteRow",
    "StageRow",
    "Store",
    "StudyRow",
    "TrialRow",
    "TriggerRow",
    "UtcDateTime",
    "VersionRow",
    "document",
    "moment",
]
