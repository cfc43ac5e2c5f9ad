"""Pools as tables in a terminal."""

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from everloop.cli.options import Json
from everloop.durations import span
from everloop.isolation import BANNER, is_simulated
from everloop.queues import amount
from everloop.terminal import table, when

HOURS = 3_600_000
KINDS = {
    "useful": "useful",
    "redone": "done again",
    "checkpoint": "checkpoints",
    "held_idle": "held, idle",
    "notice": "notice",
    "quarantined": "quarantine",
    "free": "free",
    "reserved_idle": "reserved",
    "lost": "away",
}
"""Of leased and free time, as people say it, in this order."""


def pool(found: Json) -> RenderableType:
    parts: list[RenderableType] = [heading(f"pool {found['pool']}"), devices(found["devices"])]
    if any(is_simulated(row["name"]) for row in found["devices"]):
        parts.insert(0, Text(BANNER, style="bold"))
    parts += [heading("held now"), leases(found["leases"])]
    parts += [heading("queues"), queues(found["queues"])]
    parts += [heading("waiting"), *waiting(found["waiting"], found["waiting_in_all"])]
    if found["reservations"]:
        parts += [heading("reserved"), *(Text(each["sentence"]) for each in found["reservations"])]
    return Group(*parts)


def heading(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def devices(rows: Iterable[Json]) -> RenderableType:
    made = table("device", "node", "state", "cores used", "memory used", "GPU used")
    for row in rows:
        used, whole = row["used"], row["whole"]
        memory = f"{used['memory_mib']} of {whole['memory_mib']} MiB" if whole["memory_mib"] else "-"
        gpu = f"{used['milli_gpu'] / 1000:g} of {whole['milli_gpu'] / 1000:g}" if whole["milli_gpu"] else "-"
        state = row["state"] + (", for checks" if row["light"] else "")
        made.add_row(row["name"], row["node"], state, f"{used['cores']} of {whole['cores']}", memory, gpu)
    return made if made.row_count else Text("no device has reported; does the compute worker run?")


def leases(rows: Iterable[Json]) -> RenderableType:
    made = table("token", "lifecycle", "stage", "queue", "has", "state", "since (UTC)")
    for row in rows:
        told = row["notice"]
        state = row["state"] + (f": {told['why'] or told['reason']}" if told else "")
        if row["reclaimable"] and not told:
            state += ", over quota"
        if row["over_runtime_seconds"] and not told:
            state += ", over its max_runtime"
        made.add_row(
            str(row["token"]), row["lifecycle"], row["stage"] or "-", row["queue"], has(row["members"]), state,
            when(row["granted_at"]),
        )  # fmt: skip
    return made if made.row_count else Text("nothing is held")


def has(members: Sequence[Json]) -> str:
    """`cpu0: 2 cores`."""
    told = (f"{member['device']}: {amounts(member['amounts'])}" + fenced(member) for member in members)
    return "; ".join(told)


def fenced(member: Json) -> str:
    """How far it is kept apart from others on its GPU."""
    return f" ({member['fenced']})" if member.get("fenced") else ""


def amounts(of: Json) -> str:
    parts = [amount("cores", of["cores"])]
    parts += [f"{of['memory_mib']} MiB"] if of["memory_mib"] else []
    parts += [amount("milli_gpu", of["milli_gpu"])] if of["milli_gpu"] else []
    return ", ".join(parts)


def queues(rows: Sequence[Json]) -> RenderableType:
    gpus = any(row[of]["milli_gpu"] > 0 for row in rows for of in ("quota", "limit", "use"))
    made = table("queue", "quota", "limit", "share now", "in use", "waiting", "weight", "priority")
    for row in rows:
        made.add_row(
            "  " * row["depth"] + row["id"],
            counted(row["quota"], gpus=gpus),
            "none" if min(row["limit"].values()) < 0 and not gpus else counted(row["limit"], gpus=gpus),
            counted(row["share"], gpus=gpus) if row["share"] else "-",
            counted(row["use"], gpus=gpus) + (" (over quota)" if row["over_quota"] else ""),
            str(row["pending"]),
            str(row["weight"]),
            str(row["priority"]),
        )
    return made


def counted(of: Json, *, gpus: bool) -> str:
    return ", ".join(amount(name, of[name]) for name in (("cores", "milli_gpu") if gpus else ("cores",)))


def waiting(rows: Sequence[Json], in_all: int) -> Iterator[RenderableType]:
    if not rows:
        yield Text("nobody waits")
    for row in rows:
        yield Text.assemble(
            (f"{row['position'] or '-'}. {row['lifecycle']}", "bold"), f" in {row['queue']}: {row['sentence']}"
        )
        if row["unblocks"]:
            yield Text(f"   {row['unblocks']}", style="dim")
    if in_all > len(rows):
        yield Text(f"and {in_all - len(rows)} more", style="dim")


def nodes(rows: Iterable[Json]) -> RenderableType:
    rows = list(rows)
    made = table("node", "state", "devices", "cores used", "leases")
    for row in rows:
        used = sum(device["used"]["cores"] for device in row["devices"])
        whole = sum(device["whole"]["cores"] for device in row["devices"])
        of = ", ".join(
            device["name"] + (f" ({device['state']})" if device["state"] != "ready" else "")
            for device in row["devices"]
        )
        made.add_row(row["node"], row["state"], of, f"{used} of {whole}", str(row["leases"]))
    return made


def changed(found: Json) -> RenderableType:
    parts: list[RenderableType] = [Text(line) for line in found["changes"]] or [Text("the queues are as they were")]
    parts += [Text(f"lease {each['token']} of {each['lifecycle']}: {each['sentence']}") for each in found["effects"]]
    parts += [Text(line) for line in (*found["grants"], *found["waits"])]
    if found["changes"] and not found["effects"]:
        parts.append(Text("no running lease stands otherwise"))
    if found["changes"] and not found["made"]:
        parts.append(Text("this was only tried: nothing is changed", style="dim"))
    return Group(*parts)


def cost(found: Json) -> RenderableType:
    hours = span((found["to_ms"] - found["from_ms"]) / 1000)
    whole = found["capacity"]
    parts: list[RenderableType] = [
        Text(f"pool {found['pool']}, {hours} until {when(found['until'])}: {core_hours(whole['core_ms'])} core-hours"
             + (f", {whole['gpu_ms'] / 1000 / HOURS:.2f} GPU-hours" if whole["gpu_ms"] else ""))
    ]  # fmt: skip
    currency = found["currency"]
    priced = [currency] if currency else []
    kinds = table("what for", "core-hours", "share", *(["GPU-hours"] if whole["gpu_ms"] else []), *priced)
    for kind, label in KINDS.items():
        spent = found["kinds"][kind]
        gpu = [f"{spent['gpu_ms'] / 1000 / HOURS:.2f}"] if whole["gpu_ms"] else []
        money = [in_money(spent["micros"])] if priced else []
        kinds.add_row(label, core_hours(spent["core_ms"]), percent(spent["core_ms"], whole["core_ms"]), *gpu, *money)
    parts.append(kinds)
    if found["problem"]:
        parts.append(Text(found["problem"], style="red"))
    rows = table(found["by"], "core-hours", "useful", "done again", "checkpoints", "held, idle", "notice", "quarantine",
                 "charged", *priced)  # fmt: skip
    for row in found["rows"]:
        parts_of = [core_hours(row["kinds"].get(kind, {}).get("core_ms", 0)) for kind in list(KINDS)[:6]]
        money = [in_money(row["charged_micros"])] if priced else []
        rows.add_row(
            row["name"] or "-", core_hours(row["core_ms"]), *parts_of, core_hours(row["charged_core_ms"]), *money
        )
    parts.append(rows if rows.row_count else Text("nothing was leased"))
    return Group(*parts)


def budgets(found: Json) -> RenderableType:
    prices = found["prices"]
    currency = prices["currency"] if prices else ""
    about = (
        f"a core costs {prices['core_hour']:g} {currency} an hour, a GPU {prices['gpu_hour']:g} {currency}"
        if prices
        else "no prices are set: `everloop budget prices --core-hour 0.04`"
    )
    made = table("budget of", "core-hours", "GPU-hours", currency or "money", "since (UTC)", "")
    for row in found["items"]:
        pairs = [_of(row["used"][each], row["bounds"][each]) for each in ("core_hours", "gpu_hours", "money")]
        state = "spent: it waits" if row["spent"] else f"{100 * row['part']:.0f} %"
        made.add_row(f"{row['scope']} {row['name']}", *pairs, when(row["since"]), state)
    return Group(made if made.row_count else Text("nobody has a budget"), Text(about))


def _of(used: float, bound: float | None) -> str:
    return "-" if bound is None else f"{used:,.2f} of {bound:,.2f}"


def policy(found: Json) -> RenderableType:
    made = table("rule", "is", "as usual", "")
    for row in found["rules"]:
        usual = "yes" if row["value"] == row["default"] else f"no: {row['usual']}"
        made.add_row("--" + row["name"].replace("_", "-"), row["words"], usual, row["about"])
    by = f"changed last by {found['person']}, {when(found['at'])} UTC" if found["at"] else "nobody has changed it"
    return Group(made, Text(by))


def advice(rows: Sequence[Json]) -> RenderableType:
    if not rows:
        return Text("no job of more than 5 s has been measured yet")
    return Group(*(Text(f"{row['sentence']} ({row['jobs']} job{'s' * (row['jobs'] != 1)})") for row in rows))


def core_hours(milliseconds: int) -> str:
    return f"{milliseconds / HOURS:,.3f}"


def in_money(micros: int) -> str:
    return f"{micros / 1_000_000:,.2f}"


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"
