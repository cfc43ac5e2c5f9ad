"""What leased time was for: every core and every GPU of a pool, at every millisecond, is in exactly one kind.

The ledger's transactions call `members_freed` and `devices_noted`; whoever wants to know calls `spent`.
"""

from activities.lease_time import rows
from activities.lease_time.cutting import Job, Life, Span, cut
from activities.lease_time.rows import devices_noted, held, held_now, in_ms, leased, members_freed
from activities.lease_time.sums import KINDS, LEASED, Capacity, Mark, Overcommitted, Spent, Totals, Use, totals
from activities.lease_time.written import Leased, Part, first_ms, freed, inventoried, spent, until_now

__all__ = [
    "KINDS",
    "LEASED",
    "Capacity",
    "Job",
    "Leased",
    "Life",
    "Mark",
    "Overcommitted",
    "Part",
    "Span",
    "Spent",
    "Totals",
    "Use",
    "cut",
    "devices_noted",
    "first_ms",
    "freed",
    "held",
    "held_now",
    "in_ms",
    "inventoried",
    "leased",
    "members_freed",
    "rows",
    "spent",
    "totals",
    "until_now",
]
