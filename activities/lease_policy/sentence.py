"""An explanation as people read it: why a request waits, and what would change that."""

from functools import lru_cache

from activities.lease_policy.room import Four
from activities.lease_policy.state import Explain
from everloop import queues

WHOLE_GPU = 1000


@lru_cache(maxsize=4096)
def said(amount: Four, like: Four | None = None) -> str:
    """An amount in words. *like*: just the resources of that one, also where there is none."""
    asked = like or amount
    cores, memory, milli_gpu, gpu_memory = (max(each, 0) for each in amount)
    words = [
        queues.amount("cores", cores) if asked[0] > 0 else "",
        f"{memory} MiB" if asked[1] > 0 else "",
        f"{queues.gpus(milli_gpu)} {'GPU' if 0 < milli_gpu <= WHOLE_GPU else 'GPUs'}" if asked[2] > 0 else "",
        f"{gpu_memory} MiB of GPU memory" if asked[3] > 0 else "",
    ]
    return ", ".join(word for word in words if word) or "nothing"


def sentence(told: Explain, queue: str) -> str:
    """Why it waits: "waits for 2 cores in queue vision: 3 ahead, queue vision is at its quota (4 cores, ...) ..."."""
    facts = dict(told.detail)
    if told.code == "unknown_queue":
        return f"waits for a queue {queue!r} that takes requests: there is none"
    if told.code == "has_lease":
        return "waits for its earlier lease to end"
    wants = f"waits for {facts.get('needs', 'its turn')} in queue {queue}"
    if told.code == "infeasible":  # nobody is ahead of it, and it of nobody
        return f"{wants}: {_why(told.code, facts)}"
    ahead = "next" if told.position == 1 else f"{told.position - 1} ahead"
    return f"{wants}: {ahead}, {_why(told.code, facts)}"


def _why(code: str, facts: dict[str, str]) -> str:
    sentences = {
        "no_room": "{free} free" + (", reserved for it at its start" if "start_ms" in facts else ""),
        "behind": "{free} free",
        "over_limit": "queue {of} would go over its limit ({bound}, {used} in use)",
        "over_quota": "queue {of} is over its quota with it ({bound}, {used} in use); {free} free",
        "not_preemptible_over_quota": "queue {of} would have more than its quota of work that is not preemptible "
        "({bound}, {used} in use)",
        "reserved_for": "what is free is kept for {for}",
        "waits_for_notice": "{victims} told to let go for it",
        "infeasible": "no device or set of devices of the pool could hold it, the largest has {largest}",
        "fuel": "not tried in this decision, too many wait for different things",
    }
    return sentences.get(code, code).format_map(_Facts(facts))


def unblocks(told: Explain) -> str:
    """What would change it."""
    facts = dict(told.detail)
    alone = "alone" in facts
    away = ", or devices that are away come back" if "devices_away" in facts else ""
    sentences = {
        "unknown_queue": "somebody makes that queue, or the request names another one without queues below it",
        "has_lease": "its earlier lease ends",
        "no_room": "a lease ends, or one that may be taken back has had the minimum run time over its queue's share",
        "behind": "those ahead are served and a lease ends",
        "over_limit": ("it asks for less" if alone else "a lease in queue {of} ends")
        + ", or an operator raises the limit of queue {of}",
        "over_quota": "a lease ends, or an operator raises the quota of queue {of}",
        "not_preemptible_over_quota": ("it asks for less" if alone else "such work in queue {of} ends")
        + ", the quota of queue {of} is raised, or it is made preemptible",
        "reserved_for": "{for} is served or goes away"
        + ("" if "promised" in facts else "; a declared max_runtime that ends before each reservation lets it pass"),
        "waits_for_notice": "they write a checkpoint and let go, or are ended when their time is up",
        "infeasible": f"it asks for less, a larger device joins the pool{away}",
        "fuel": "some of those before it start or are withdrawn",
    }
    return sentences.get(told.code, "").format_map(_Facts(facts))


class _Facts(dict[str, str]):
    """A fact that an older record lacks leaves its place empty."""

    def __missing__(self, key: str) -> str:
        return ""
