"""What a stage leaves behind. Records are small: bulk is in the artifact store and travels as a `Blob`.

Unknown fields are ignored, so that an older worker can read what a newer one wrote.
"""

from everloop.records.approval import Claim, Decision, Endorsement, Evidence, Verdict
from everloop.records.data import Check, Code, Column, Snapshot, Validation
from everloop.records.drift import Break, ColumnDrift, DriftReport, Measure, MeasureName, TriggerVerdict, Window
from everloop.records.evaluation import ColumnScore, Comparison, Evaluation
from everloop.records.export import Exported, Field, Parity, Signature
from everloop.records.features import Prepared
from everloop.records.job import Ran, Result, Resumed
from everloop.records.labels import PerformanceReport, WindowPerformance
from everloop.records.lease import Lease, Member, Slot
from everloop.records.record import Blob, Record
from everloop.records.registry import Champion, Version
from everloop.records.release import RollBack, Route, RouteChange, SignedRollBack
from everloop.records.training import Curve, Finish, Refitted, Trained
from everloop.records.wait import Wait

__all__ = [
    "Blob",
    "Break",
    "Champion",
    "Check",
    "Claim",
    "Code",
    "Column",
    "ColumnDrift",
    "ColumnScore",
    "Comparison",
    "Curve",
    "Decision",
    "DriftReport",
    "Endorsement",
    "Evaluation",
    "Evidence",
    "Exported",
    "Field",
    "Finish",
    "Lease",
    "Measure",
    "MeasureName",
    "Member",
    "Parity",
    "PerformanceReport",
    "Prepared",
    "Ran",
    "Record",
    "Refitted",
    "Result",
    "Resumed",
    "RollBack",
    "Route",
    "RouteChange",
    "Signature",
    "SignedRollBack",
    "Slot",
    "Snapshot",
    "Trained",
    "TriggerVerdict",
    "Validation",
    "Verdict",
    "Version",
    "Wait",
    "Window",
    "WindowPerformance",
]
