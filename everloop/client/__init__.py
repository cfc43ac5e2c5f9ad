"""The API in Python: `Client().submit("spec.yaml")`. Every call answers or raises an error of `everloop.errors`.

Answers are the API's JSON as plain dicts and lists: what a notebook prints is what the CLI's `--json` prints.
"""

from everloop.client.approval import ApprovalCalls
from everloop.client.connection import error_of
from everloop.client.identity import IdentityCalls
from everloop.client.labels import LabelCalls
from everloop.client.lifecycle import RUNNING
from everloop.client.models import ModelCalls
from everloop.client.pool import PoolCalls
from everloop.client.predictions import PredictionCalls
from everloop.client.search import SearchCalls
from everloop.client.spec import load_spec

__all__ = ["RUNNING", "Client", "error_of", "load_spec"]


class Client(SearchCalls, ApprovalCalls, ModelCalls, PredictionCalls, LabelCalls, PoolCalls, IdentityCalls):
    """A connection to one deployment as one person. Safe to share between threads; use as a context manager."""
