"""What people see in a terminal of what the API answers. Marks and words carry the meaning, colour none."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from everloop.durations import span
from everloop.specs import JOB_STAGES, SKIPPABLE, STAGES
from everloop.terminal import command, mark, moment, number, sketch, spark, table, when, whole, words

Json = dict[str, Any]
MOST_NOTES = 6

MOST_PARAMETERS = 3
"""Of a trial, beside other things."""

LOG_DAYS = 31
"""Shown of a log."""

LEAST_SHARE = 0.01
"""Of a parameter that is worth a line."""


def metrics_line(metrics: Json | None) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in (metrics or {}).items())


def lifecycles(rows: Iterable[Json]) -> RenderableType:
    made = table("lifecycle", "model", "status", "stage", "submitted (UTC)")
    alarms: list[RenderableType] = []
    for row in rows:
        if row.get("alarm"):
            alarms.append(Text(f"ALARM {row['id']}: {row['alarm']} (`everloop show {row['id']}`)", style="red"))
        status = Text("ALARM", style="bold red") if row.get("alarm") else words(str(row["status"]))
        made.add_row(
            str(row["id"]), str(row.get("model", "")), status, str(row.get("stage") or ""),
            when(row.get("submitted_at")),
        )  # fmt: skip
    if alarms:
        return Group(made, *alarms)
    return made if made.row_count else Text("no lifecycle yet; `everloop submit SPEC.yaml` starts one")


def lifecycle(found: Json, now: datetime | None = None) -> RenderableType:
    """The whole of a lifecycle: head, stage rail, wait, metrics, failure."""
    head = Text.assemble((str(found["id"]), "bold"), "  ", words(str(found["status"])))
    if found.get("version") is not None:
        head.append(f"  version {found['version']}")
    parts: list[RenderableType] = [head, rail(found, now or datetime.now(UTC))]
    if found.get("metrics"):
        parts.append(Text(f"metrics: {metrics_line(found['metrics'])}"))
    comparison = found.get("comparison") or {}
    if comparison.get("reason"):
        parts.append(Text(f"champion: {comparison['reason']}"))
    parts.extend(alarms_of(found))
    parts.extend(notes_of(found))
    if found.get("progress"):
        parts.append(Text(f"{found['progress']['stage']}: {found['progress']['sentence']}", style="cyan"))
    parts.extend(leaders(found))
    if found.get("wait"):
        parts.append(Text(str(found["wait"]), style="yellow"))
    if found["status"] == "waiting_approval":
        parts.append(command(f"everloop approve {found['id']}"))
        parts.append(command(f"everloop reject {found['id']} --comment WHY"))
    if found.get("reason") and found["status"] not in ("running", "waiting_approval"):
        parts.append(Text(f"why: {found['reason']}"))
    parts.extend(failure(found))
    links = found.get("links") or {}
    for name, label in (("page", "page"), ("temporal", "in Temporal")):
        if str(links.get(name, "")).startswith("http"):
            parts.append(whole(f"{label}: {links[name]}"))
    return Group(*parts)


def leaders(found: Json) -> Iterator[RenderableType]:
    """The search of a lifecycle: its best trials, and what a person can do about it."""
    told = found.get("search")
    if not told:
        return
    if told["sentence"] and told["state"] != "running":  # else `progress` says it
        yield Text(f"search: {told['sentence']}")
    if told["leaders"]:
        yield Padding(trials(told, told["leaders"], most=MOST_PARAMETERS), (0, 0, 0, 2))
        yield command(
            f"everloop take-best {found['id']}" if told["can_take_best"] else f"everloop trials {found['id']}"
        )


def search(found: Json, rows: Sequence[Json]) -> RenderableType:
    """A search and some of its trials."""
    parts: list[RenderableType] = [Text(str(found["sentence"]))] if found["sentence"] else []
    parts.append(trials(found, rows) if rows else Text("no trial of these has ended yet"))
    weighty = [each for each in found["importance"] if each["share"] >= LEAST_SHARE]
    if weighty:
        made = table("what made the difference", "family", "share of the order", "best with")
        for each in weighty:
            name = each["parameter"] if each["family"] else "which family"
            made.add_row(name, each["family"] or "all", f"{100 * each['share']:.0f} %", each["best"])
        parts += [Text(""), made]
    return Group(*parts)


def trials(found: Json, rows: Sequence[Json], most: int | None = None) -> RenderableType:
    """Trials, one a line, with their first *most* parameters."""
    made = table("place", "trial", "family", found["metric"], "took", "what was chosen")
    for row in rows:
        given = [f"{name} {_short(value)}" for name, value in row["parameters"].items()]
        more = [f"{len(given) - most} more"] if most and len(given) > most else []
        chosen = ", ".join(given[:most] + more) or "defaults" * bool(row["family"])
        place = str(row["rank"] or row["state"])
        style = "green" if row["rank"] == 1 else "red" if row["state"] == "failed" else ""
        made.add_row(
            place, str(row["number"]), row["family"], number(row["value"]), span(row["seconds"]),
            row["error"] or chosen, style=style,
        )  # fmt: skip
    return made


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)[:40]


def notes_of(found: Json) -> Iterator[RenderableType]:
    """What the reading changed in the data, where a person is to look at it."""
    notes = found.get("notes") or []
    if not notes or found["status"] == "running":
        return
    for note in notes[:MOST_NOTES]:
        yield Text(f"data: {note}")
    if len(notes) > MOST_NOTES:
        yield Text(f"data: {len(notes) - MOST_NOTES} more columns were changed")
    yield command(f"everloop data {found['id']}")


def curves(rows: Sequence[Json]) -> RenderableType:
    """How a training has learned."""
    drawn = [curve(each) for each in rows if each["steps"]]
    return Group(*drawn) if drawn else Text("no learning curve yet: a training reports one while it learns")


def curve(found: Json) -> RenderableType:
    """A training's metric: the course of each part in a few characters, and where it began, was best and ended."""
    steps, best = found["steps"], found.get("best_step")
    places = dict.fromkeys([0, *([steps.index(best)] if best in steps else []), len(steps) - 1])
    made = table(
        found["metric"] + (f", part {found['part']}" if found.get("part") else ""),
        "",
        *(f"{found['unit']} {steps[place]:,}{' (best)' * (steps[place] == best)}" for place in places),
    )
    for part in ("train", "validation"):
        values = found[part]
        if any(value is not None for value in values):
            made.add_row(part, spark(values), *(number(values[place]) for place in places))
    return made


def alarms_of(found: Json) -> Iterator[RenderableType]:
    """What is wrong with a lifecycle that it cannot say itself, and the commands that help."""
    if found.get("alarm"):
        yield Text(f"ALARM: {found['alarm']}", style="bold red")
        if found.get("help"):
            yield command(found["help"])
    if found.get("refused"):
        yield Text(f"the prediction server refuses its release: {found['refused']}", style="red")
        yield command("everloop journal verify")


def rail(found: Json, now: datetime) -> RenderableType:
    """One line a stage: mark, name, time, what came out. Stages that were not reached are listed in one line."""
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in range(4):
        made.add_column(overflow="fold", no_wrap=column in (0, 1, 2))
    started = set()
    for stage in found.get("stages") or []:
        started.add(stage["stage"])
        begin, end = moment(stage.get("started_at")), moment(stage.get("ended_at"))
        seconds = span(((end or now) - begin).total_seconds()) if begin else ""
        ran = stage.get("ran") or {}
        note = str(stage.get("summary") or "")
        if stage["status"] == "failed":
            note = str((stage.get("error") or {}).get("message") or "failed")
        if ran.get("attempt", 1) > 1:
            note += f" (attempt {ran['attempt']}{', kept' if ran.get('kept') else ''})"
        made.add_row(mark(stage["status"]), stage["stage"], Text(seconds, style="dim"), Text(note))
        if stage.get("kept"):
            made.add_row("", "", "", Text("kept " + ", ".join(file["name"] for file in stage["kept"]), style="dim"))
    ahead = [stage for stage in STAGES if stage not in started]
    if ahead and found.get("status") in ("running", "waiting_approval", "needs_attention"):
        return Group(made, Text(f"{mark('ahead').plain} then {', '.join(ahead)}", style="bright_black"))
    return made


def failure(found: Json) -> list[RenderableType]:
    """What failed, its last log lines, and the command that helps."""
    error = found.get("error") or {}
    if not error.get("message"):
        return []
    stage = error.get("stage") or found.get("stage") or ""
    field = f" [{error['field']}]" if error.get("field") else ""
    parts: list[RenderableType] = [Text(f"{stage} failed: {error['message']}{field}", style="red")]
    if error.get("hint"):
        parts.append(Text(f"  {error['hint']}"))
    lines = error.get("log_tail") or []
    if lines:
        parts.append(Padding(Text("\n".join(str(line) for line in lines[-20:]), style="dim"), (0, 0, 0, 4)))
    if found["status"] == "needs_attention":
        name = found["id"]
        helps = [f"everloop retry {name}"]
        helps += [f"everloop skip {name}"] if stage in SKIPPABLE else []
        helps += [f"everloop abort {name}"]
        helps += [f"everloop logs {name}"] if stage in JOB_STAGES else []
        helps += [f"everloop data {name}"] if (found.get("links") or {}).get("data") and not found.get("notes") else []
        parts.extend(command(text) for text in helps)
    return parts


def evidence(gate: Json) -> RenderableType:
    """What an approver is shown before deciding."""
    shown = gate.get("evidence") or {}
    comparison = shown.get("comparison") or {}
    parity = shown.get("parity") or {}
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    champion = shown.get("champion_version")
    exported = (
        f"{number(parity.get('rows'))} rows and {number(parity.get('edge_rows'))} extremes compared, "
        f"{number(parity.get('mismatches'))} mismatches, largest difference {number(parity.get('max_difference'))}"
    )
    until = when(shown.get("trained_until"))
    code = str(shown.get("code_digest") or "")
    rows = (
        ("model", f"{shown.get('project')}/{shown.get('model')} version {shown.get('version')}"),
        ("asked by", f"{shown.get('submitted_by')} ({shown.get('trigger')})"),
        ("test metrics", metrics_line(shown.get("metrics"))),
        ("champion", f"version {champion}" if champion is not None else "none: this would be the first release"),
        ("comparison", str(comparison.get("reason") or "-")),
        ("learned from", f"{number(shown.get('rows'))} rows{f', until {until} UTC' if until else ''}"),
        ("the data", "\n".join(shown.get("notes") or ("as it is: nothing was read as missing or left out",))),
        ("learned by", f"{shown.get('trainer') or 'lightgbm'}{f', code {code[:16]}' if code else ''}"),
        ("export", exported),
        ("model digest", str(shown.get("model_digest") or "")),
        ("evidence", str(gate.get("evidence_digest") or "")),
        ("open until", f"{when(gate.get('deadline'))} UTC"),
    )
    for name, value in rows:
        made.add_row(Text(name, style="bold"), value)
    return made


def data(found: Json) -> RenderableType:
    """What a lifecycle has read: column by column, and what the rules changed."""
    files = found["files"]
    rows = f"{number(found['rows'])} rows" if found["rows"] is not None else "rows"
    head = Text.assemble((str(found["lifecycle"]), "bold"), f"  {rows} from {len(files)} file{'s' * (len(files) != 1)}")
    made = table("column", "read as", "missing", "different", "how often", "from", "to")
    for column in found["columns"]:
        bars = column["bars"]
        ordered = bars and column["kind"] in ("number", "datetime")
        made.add_row(
            str(column["name"]), read_as(column), number(column["missing"]), number(column["distinct"]),
            whole(sketch([bar["rows"] for bar in bars]), style=""),
            bars[0]["label"] if bars else "", bars[-1]["label"] if ordered else "",
        )  # fmt: skip
    parts: list[RenderableType] = [head, made]
    if missing := found["target_missing"]:
        of = f"of {number(found['rows'])} " if found["rows"] is not None else ""
        parts.append(
            Text(f"{number(missing)} {of}rows have no target ({found['target']}): nothing is learned from them")
        )
    parts += [Text(said) for said in found["changed"]]
    if found["rejected"]:
        parts.append(command(f"everloop data {found['lifecycle']} --rejected > rejected.csv"))
    return Group(*parts)


def kept(rows: Sequence[Json], lifecycle: str) -> RenderableType:
    """The files that jobs kept for people."""
    if not rows:
        return Text("no file was kept; a trainer keeps one with `log_artifact`")
    made = table("stage", "start", "", "file", "bytes")
    for row in rows:
        size = "" if row["size_bytes"] is None else number(row["size_bytes"])
        made.add_row(row["stage"], str(row["start"]), words(row["status"]), row["name"], size)
    return Group(made, command(f"everloop kept {lifecycle} NAME -o OUT"))


def read_as(column: Json) -> str:
    """How a column's texts became values: `number, decimal comma, without %`."""
    read = column["read"] or {"type": column["kind"]}
    said = [str(read["type"]), *read.get("format", ())]
    said += ["decimal comma"] if read.get("decimal") == "," else []
    said += [f"without {read['unit']}"] if read.get("unit") else []
    return ", ".join(said) + (" (declared)" if read.get("declared") else "")


def models(rows: Iterable[Json]) -> RenderableType:
    made = table("project", "model", "live", "released (UTC)", "versions")
    for row in rows:
        live: str | Text = "none" if row["version"] is None else f"version {row['version']}"
        if row.get("refused"):
            live = Text(f"{live}: {row['refused']}; `everloop journal verify` helps", style="red")
        made.add_row(row["project"], row["model"], live, when(row["released_at"]), str(row["versions"]))
    return made if made.row_count else Text("no model yet; `everloop submit SPEC.yaml` makes one")


def log(found: Json) -> RenderableType:
    """What a prediction log holds, and its latest days."""
    days = found["days"]
    made = table("day (UTC)", "rows")
    for each in days[-LOG_DAYS:]:
        made.add_row(each["day"], f"{each['rows']:,}")
    parts = [f"{found['rows']:,} rows"]
    if found["first_event"]:
        parts.append(f"event time {when(found['first_event'])} to {when(found['last_event'])} UTC")
    parts.append(f"{found['parquet_bytes'] / 2**20:,.1f} MiB of Parquet, {found['lines_bytes'] / 2**20:,.1f} of lines")
    if found["torn"]:
        parts.append(f"{found['torn']:,} torn lines passed over")
    keep = found["keep_seconds"]
    parts.append("rows stay for ever" if keep is None else f"rows stay for {keep / 86_400:g} days")
    if found["removed_rows"]:
        parts.append(f"{found['removed_rows']:,} have been removed")
    return Group(Text("; ".join(parts)), made) if days else Text("; ".join(parts))


def keys(rows: Iterable[Json]) -> RenderableType:
    made = table("key", "state", "since (UTC)")
    for row in rows:
        made.add_row(row["id"], row["state"], when(row["since"]))
    return made if made.row_count else Text("no key yet; `everloop up` makes the first one")


def checks(rows: Iterable[Json]) -> RenderableType:
    """A model's drift checks, oldest window first."""
    made = table("window (UTC)", "version", "rows", "share", "verdict", "why", "lifecycle")
    for row in rows:
        made.add_row(
            when(row["window_start"]), str(row["version"]), number(row["rows"]), number(row["share"]),
            row["verdict"].replace("_", " "), row["reason"] + _late(row.get("late_rows", 0)), row["lifecycle"],
        )  # fmt: skip
    return made if made.row_count else Text("no window has been checked yet")


def performance(found: Json) -> RenderableType:
    """What a model's labels say, the oldest window first."""
    made = table("window (UTC)", "labelled", "performance (95 %)", "then", "what came of it")
    for row in found["performance"]:
        span = f"{number(row['low'])} to {number(row['high'])}"
        made.add_row(
            when(row["window_start"]), f"{row['labelled']:,} of {row['rows']:,}",
            f"{row['metric']} {number(row['value'])} ({span})", number(row["expected"]), _came_of(row),
        )  # fmt: skip
    said = f"{found['labels']:,} rows have a label"
    if found["waiting"]:
        said += f"; of {found['waiting']:,} the prediction has not come yet"
    if found["corrected"]:
        said += f"; {found['corrected']:,} labels were corrections"
    if found["unread_bytes"]:
        said += "; more have come, and are joined when the monitor looks next"
    if found["failed"]:
        said += f"; they could not be joined: {found['failed']}"
    return Group(made, Text(said)) if made.row_count else Text(said)


def _came_of(row: Json) -> str:
    told = "worse than then" if row["over"] else "-"
    return f"{row['verdict'].replace('_', ' ')}: {row['reason']}" if row["verdict"] else told


def _late(rows: int) -> str:
    return f"; {rows:,} row{'s' if rows > 1 else ''} came after the window was checked" if rows else ""
