"""The stack of the temporal tests: attacks are made on the real thing."""

from tests.temporal.conftest import stack
from tests.temporal.test_api_temporal import api

__all__ = ["api", "stack"]
