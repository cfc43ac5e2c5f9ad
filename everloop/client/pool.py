"""What a client asks of a pool: who holds what, who waits, the queue tree, nodes, and what leased time was for."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from everloop.client.connection import Connection
from everloop.client.shapes import Json
from everloop.errors import Invalid


class PoolCalls(Connection):
    """The part of `Client` that speaks of pools. Amounts are cores, MiB and thousandths of a GPU."""

    def pool(self, pool: str = "default") -> Json:
        """Devices, queues with quota, share and use, leases, and who waits with one true reason each."""
        return dict(self._api("GET", f"/pools/{quote(pool, safe='')}"))

    def queues(self, pool: str = "default") -> Json:
        """The queue tree: `items`, and `tree` as `apply_queues` takes it."""
        return dict(self._api("GET", f"/pools/{quote(pool, safe='')}/queues"))

    def set_queue(
        self, queue: str, changes: Mapping[str, Any], *, only_try: bool = False, pool: str = "default"
    ) -> Json:
        """Change a queue, or add it: `{"quota": {"cores": 2}, "weight": 3, "parent": "research", "remove": True}`.

        Answers what that does to running leases; with *only_try* nothing is changed. Raises `Invalid` for a tree that
        makes no sense.
        """
        path = f"/pools/{quote(pool, safe='')}/queues/{quote(queue, safe='')}"
        return dict(self._api("PATCH", path, json=dict(changes), params={"try": only_try}))

    def apply_queues(
        self, tree: Mapping[str, Any] | str | Path, *, only_try: bool = False, pool: str = "default"
    ) -> Json:
        """Make the queue tree as a file (YAML or JSON) or a mapping says. Queues that it does not name are removed.

        Raises `Invalid` with the place of what makes no sense, and `Conflict` where work waits in a removed queue.
        """
        body = dict(tree) if isinstance(tree, Mapping) else read_tree(Path(tree))
        path = f"/pools/{quote(pool, safe='')}/queues"
        return dict(self._api("PUT", path, json=body, params={"try": only_try}))

    def policy(self, pool: str = "default") -> Json:
        """By what the pool decides: `rules` with value and default, and who changed them last."""
        return dict(self._api("GET", f"/pools/{quote(pool, safe='')}/policy"))

    def set_policy(self, changes: Mapping[str, Any], pool: str = "default") -> Json:
        """Change rules: `{"grace": "30s", "minimum_run_time": "10m", "starving": "default"}`; the others stay.

        Answers what was and is, as `done`. Raises `Invalid` for a rule that makes no sense.
        """
        return dict(self._api("PUT", f"/pools/{quote(pool, safe='')}/policy", json=dict(changes)))

    def leases(self, pool: str = "default", *, ended: int = 0) -> list[Json]:
        """Who holds what, and the latest *ended* leases."""
        found = self._api("GET", "/leases", params={"pool": pool, "ended": ended})
        return list(found["items"])

    def explain(self, of: str) -> Json:
        """Why a lifecycle or a request waits, or how the lease stands that it has. *of*: its id, or a lease's token."""
        return dict(self._api("GET", f"/leases/explain/{quote(str(of), safe='/')}"))

    def revoke(self, token: int, reason: str, grace_seconds: int = 60) -> Json:
        """Take a lease back: its holder writes a checkpoint within the grace, lets go, and waits at its old place."""
        body = {"reason": reason, "grace_seconds": grace_seconds}
        return dict(self._api("POST", f"/leases/{token}/revoke", json=body))

    def nodes(self, pool: str = "default") -> list[Json]:
        """Machines with their devices."""
        return list(self._api("GET", "/nodes", params={"pool": pool})["items"])

    def drain(self, node: str, reason: str = "", grace_seconds: int = 60, pool: str = "default") -> Json:
        """Give a node (or one device) no new leases, and tell those that it has to let go within the grace."""
        body = {"reason": reason, "grace_seconds": grace_seconds}
        return dict(self._api("POST", f"/nodes/{quote(node, safe='')}/drain", json=body, params={"pool": pool}))

    def cordon(self, node: str, reason: str = "", pool: str = "default") -> Json:
        """Give a node (or one device) no new leases; those that it has go on. `undrain` opens it again."""
        path = f"/nodes/{quote(node, safe='')}/cordon"
        return dict(self._api("POST", path, json={"reason": reason}, params={"pool": pool}))

    def undrain(self, node: str, pool: str = "default") -> Json:
        """Let a node have leases again."""
        return dict(self._api("POST", f"/nodes/{quote(node, safe='')}/undrain", json={}, params={"pool": pool}))

    def cost(self, by: str = "queue", since: str | datetime = "7d", pool: str = "default") -> Json:
        """What core and GPU time was for, in kinds that sum up to capacity times time exactly.

        *by*: `lifecycle`, `model`, `queue` or `stage`. *since*: a moment, or how long ago (`90m`, `12h`, `7d`).
        """
        asked = since.isoformat() if isinstance(since, datetime) else since
        return dict(self._api("GET", "/cost", params={"by": by, "since": asked, "pool": pool}))

    def budgets(self, pool: str = "default") -> Json:
        """`items`: who may spend what, and what is spent of it; `prices`: what an hour costs now, or None."""
        return dict(self._api("GET", "/budgets", params={"pool": pool}))

    def set_budget(self, scope: str, name: str, changes: Mapping[str, Any], pool: str = "default") -> Json:
        """Set, raise or take away the budget of a `queue` or a `lifecycle`: `{"core_hours": 100, "money": "none"}`."""
        path = f"/budgets/{quote(scope, safe='')}/{quote(name, safe='')}"
        return dict(self._api("PUT", path, json=dict(changes), params={"pool": pool}))

    def set_prices(
        self, core_hour: float | str, gpu_hour: float | str = 0, currency: str = "EUR", pool: str = "default"
    ) -> Json:
        """What an hour of a core and of a GPU costs from now on."""
        body = {"core_hour": core_hour, "gpu_hour": gpu_hour, "currency": currency}
        return dict(self._api("PUT", "/prices", json=body, params={"pool": pool}))

    def advice(self, since: str = "30d", pool: str = "default") -> Json:
        """By model and stage, what jobs used of what they leased, and what to write into the spec."""
        return dict(self._api("GET", "/advice", params={"since": since, "pool": pool}))


def read_tree(path: Path) -> Json:
    """A queue file as JSON, checked as far as that goes without the pool. Raises `Invalid`."""
    import yaml

    from everloop import queues

    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise Invalid(f"cannot read {path}: {why}", field="FILE") from None
    except yaml.YAMLError as error:
        raise Invalid(f"{path} is not YAML: {' '.join(str(error).split())}", field="FILE") from None
    return queues.document(queues.read(content))
