"""A search: its leaderboard, the objective over time, which parameters matter, how trials learned."""

from api.search.reading import summary
from api.search.routes import router
from api.search.screens import page

__all__ = ["page", "router", "summary"]
