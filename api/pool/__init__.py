"""Pools: who holds what, who waits and why, queues, machines."""

from api.pool.answers import CordonAsked, DrainAsked, PolicyAsked, QueueAsked, RevokeAsked, TreeAsked, UndrainAsked
from api.pool.routes import router
from api.pool.screens import page

BODIES = (CordonAsked, DrainAsked, PolicyAsked, QueueAsked, RevokeAsked, TreeAsked, UndrainAsked)

__all__ = ["BODIES", "page", "router"]
