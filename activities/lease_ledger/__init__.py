"""The lease ledger: requests, grants, tokens. Each function is one transaction; SQL is the authority.

A grant's token is the fence: strictly increasing in the whole deployment. Every pointer (result, version) is written
in the transaction that checks it, so a holder whose lease was taken away commits nothing.
"""

from activities.lease_ledger.decision import FUEL, due, grant, look, offers, outlook, told, untold
from activities.lease_ledger.devices import absent, cordon, drain, note_inventory, others_on, revoke, undrain
from activities.lease_ledger.ends import end, end_run, proven, quarantine, unproven
from activities.lease_ledger.fence import check_token
from activities.lease_ledger.holding import accept, adopt, commit, held, kept_checkpoint, renew
from activities.lease_ledger.record import replayed, said
from activities.lease_ledger.requests import cancel, enqueue
from activities.lease_ledger.rows import LARGEST, OFFER_TTL, RENEWALS, WORKING

__all__ = [
    "FUEL",
    "LARGEST",
    "OFFER_TTL",
    "RENEWALS",
    "WORKING",
    "absent",
    "accept",
    "adopt",
    "cancel",
    "check_token",
    "commit",
    "cordon",
    "drain",
    "due",
    "end",
    "end_run",
    "enqueue",
    "grant",
    "held",
    "kept_checkpoint",
    "look",
    "note_inventory",
    "offers",
    "others_on",
    "outlook",
    "proven",
    "quarantine",
    "renew",
    "replayed",
    "revoke",
    "said",
    "told",
    "undrain",
    "unproven",
    "untold",
]
