"""What leased time was for: every core and every GPU of a pool, at every millisecond, is in exactly one kind."""

from activities.lease_time.cutting import Job, Life, Span, cut
from activities.lease_time.sums import KINDS, Capacity, Mark, Overcommitted, Spent, Totals, Use, totals

__all__ = [
    "KINDS",
    "Capacity",
    "Job",
    "Life",
    "Mark",
    "Overcommitted",
    "Span",
    "Spent",
    "Totals",
    "Use",
    "cut",
    "totals",
]
