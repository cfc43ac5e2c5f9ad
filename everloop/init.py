"""`everloop init`: look at a table, write a spec that submits as it is and explains itself."""

import hashlib
import json
import os
import re
import subprocess
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from everloop import engine, errors
from everloop.specs import METRICS, Monitor, checked
from everloop.texts import AMONG_NUMBERS

PATIENCE_SECONDS = 600
SHOWN = 12
LONGEST_ENDING = 9
"""Of a file's name: `.parquet`, with its dot, has 8 letters."""
MOST_COLUMNS = 100
"""Listed in a draft with what was found; of more only those of which there is something to say."""
COLUMNS_BYTES, DEFAULTS_BYTES = 16 << 10, 80
"""Of that list in a spec, and what the fields that an entry does not name take."""
WINDOWS = "day", "week", "month"

ASKED = "target_missing=drop"
"""What a draft asks a person to say, as `submit --set` takes it."""
ASKS = "# target_missing: drop"
"""The line of a draft that asks it."""

Profile = dict[str, Any]
Look = Callable[[Path, list[str]], Profile]
"""At the table at a path, with the arguments that `activities.compute.profile` takes."""


def draft(  # noqa: PLR0917
    path: Path,
    target: str,
    time: str | None = None,
    model: str | None = None,
    encoding: str | None = None,
    look: Look | None = None,
) -> str:
    """A commented YAML spec for the table at *path* (a file, or a folder of files).

    *encoding*: of text files, where it is not found by itself. *look*: where this process has loaded what reads
    tables already; else that is done in a process of its own.

    Raises what a lifecycle's first stages would: `DatasetMissing`, `InvalidData`, `InvalidSpec`, `TargetUnusable`.
    """
    name = name_from(path) if model is None else model
    asked = {
        "model": name,
        "task": "regression",
        "target": target,
        "time": time,
        "source": {"path": str(path.absolute()), "encoding": encoding},
    }
    checked(asked)  # before the data is looked at: that may take a while
    arguments = [str(path.absolute()), f"--target={target}", *([f"--time={time}"] if time else [])]
    arguments += [f"--encoding={encoding}"] if encoding else []
    found = (look or _look)(path.absolute(), arguments)
    text = "\n".join(_lines(found, name)) + "\n"
    checked(yaml.safe_load(text))
    return text


def name_from(path: Path) -> str:
    """A model name from a file's: `Credit Data.csv` is `credit-data`, and no two files of other scripts are one."""
    name = path.name
    for _ in range(2):  # table.csv.gz
        name = name.removesuffix(Path(name).suffix) if len(Path(name).suffix) <= LONGEST_ENDING else name
    plain = unicodedata.normalize("NFKD", name.lower())
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    made = "-".join(re.findall(r"[a-z0-9_]+", plain))[:63].strip("-_")
    if all(letter.isascii() or not letter.isalnum() for letter in plain) and made:
        return made
    # Letters of other scripts are lost: a few digits of the whole name keep two files apart.
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]
    return f"{made[:54].strip('-_') or 'model'}-{digest}"


def _look(path: Path, arguments: list[str]) -> Profile:
    """The profile, made in a process of its own: what reads tables is heavy."""
    done = subprocess.run(
        engine.command("activities.compute.profile", *arguments),
        env=engine.environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    return answer(path, done.stdout, done.stderr)


def answer(path: Path, stdout: str, stderr: str) -> Profile:
    """What `activities.compute.profile` has said of the table at *path*; raises what it has refused it with."""
    try:
        found: Profile = json.loads(stdout)
    except ValueError:
        last = (stderr.strip().splitlines() or ["it said nothing"])[-1]
        hint = "pip install 'everloop[compute]'" if "ModuleNotFoundError" in stderr else "the data may be damaged"
        raise errors.InvalidData(f"{path} could not be looked at: {last}", field="path", hint=hint) from None
    if "error" in found:
        raise errors.by_name(found["error"], found["message"], field=found["field"], hint=found["hint"])
    return found


def _lines(found: Profile, model: str) -> list[str]:
    return [
        *_heading(found),
        f"model: {_quoted(model)}",
        *_question(found),
        "",
        "source:",
        "  # This file, or a folder of files with the same columns that may grow.",
        f"  path: {_quoted(found['path'])}",
        *_encoding(found),
        "",
        *_columns(found),
        "",
        *_time(found),
        *_key(found),
        "",
        *_features(found),
        *_unused(found),
        "",
        *_rest(found),
    ]


def _heading(found: Profile) -> list[str]:
    files = f" in {found['files']} files" if found["files"] > 1 else ""
    return [
        f"# {found['rows']:,} rows{files}, {len(found['columns'])} columns.",
        *_sampled(found),
        "# It asks what becomes of rows without a target; else it submits as it is. Change what is wrong."
        if found["target_asks"]
        else "# This submits as it is; change what is wrong.",
        "# Columns: " + _listed([f"{_safe(column['name'])} ({column['kind']})" for column in found["columns"]]),
        "",
    ]


def _sampled(found: Profile) -> list[str]:
    """What was not counted over all rows."""
    if found["looked_at"] == found["rows"]:
        return []
    return [
        "# How columns are read, the rows without a target and a key that is in no row twice: counted over all rows.",
        f"# Leaks, unused columns and rows per window: told from {found['looked_at']:,} rows, always the same ones.",
    ]


def _question(found: Profile) -> list[str]:
    lines = [
        f"# binary, multiclass or regression: {found['why']}.",
        f"task: {found['task']}",
        f"target: {_quoted(found['target'])}",
    ]
    if found["task"] == "binary":
        classes = " or ".join(_safe(label) for label in found["classes"])
        lines += [f"# The class whose probability is answered: {classes}.", f"positive: {_quoted(found['positive'])}"]
    lines += _without_target(found)
    others = ", ".join(METRICS[found["task"]])
    return [*lines, f"# A challenger must beat the champion on this: {others}.", f"metric: {METRICS[found['task']][0]}"]


def _without_target(found: Profile) -> list[str]:
    """Rows without a target, counted; more than a few are not left out unasked."""
    missing = found["target_missing"]
    if not missing:
        return []
    texts = ", ".join(_safe(repr(text)) for text in found["target_texts"][:3])
    read = f" (read as missing: {texts})" if texts else ""
    lines = [f"# {missing:,} of {found['rows']:,} rows have no target{read}: nothing is learned from them."]
    if not found["target_asks"]:
        return lines
    lines.append("# So many are left out only when you say so: take the # off the next line. If those texts are a")
    lines.append("# class, say `missing: []` of the target under `columns` instead.")
    return [*lines, ASKS]


def _encoding(found: Profile) -> list[str]:
    dialect = found["dialect"]
    if not dialect or dialect["encoding"] == "utf-8":
        return []
    return ["  # Found, as the file does not say it.", f"  encoding: {dialect['encoding']}"]


def _columns(found: Profile) -> list[str]:
    """How each column was read. What stands here wins over what later data look like."""
    lines = ["# How columns are read, as found. What stands here holds for training, refit, drift and predictions."]
    lines += [f"# {_safe(sentence, 200)}." for sentence in found["changed"][:SHOWN]]
    if len(found["changed"]) > SHOWN:
        lines.append(f"# {len(found['changed']) - SHOWN} more columns have values that were read as missing.")
    offers: dict[str, str] = found["offers"]
    entries: list[str] = []
    many = len(found["reading"]) > MOST_COLUMNS
    for column in found["reading"]:
        said = _said(column)
        if many and not said.keys() - {"type"}:
            continue
        name = column["name"]
        if name in offers:
            such = _safe(offers[name])
            marks = ", ".join(_safe(repr(text)) for text in said.get("missing", ()))
            but = f", but for {marks}" if marks else ""
            entries.append(f"  # The texts are numbers, such as {such}{but}; without this line they stay text.")
        entries.append(f"  {_quoted(name)}: {_flow(said)}")
    while sum(len(entry.encode()) + DEFAULTS_BYTES for entry in entries) > COLUMNS_BYTES:
        entries.pop()
    return [*lines, "columns:", *entries] if entries else [*lines, "columns: {}"]


def _said(column: dict[str, Any]) -> dict[str, Any]:
    """A column's reading as the spec says it, without what is usual."""
    said: dict[str, Any] = {"type": column["type"]}
    if column["format"]:
        said["format"] = column["format"][0] if len(column["format"]) == 1 else list(column["format"])
    if column["decimal"] == "," or column["thousands"]:
        said["decimal"] = column["decimal"]
    if column["unit"]:
        said["unit"] = column["unit"]
    if column["declared"] and column["type"] == "number" and tuple(column["missing"]) != AMONG_NUMBERS:
        said["missing"] = list(column["missing"])
    return said


def _flow(said: dict[str, Any]) -> str:
    dumped: str = yaml.safe_dump(said, default_flow_style=True, allow_unicode=True, width=10**9, sort_keys=False)
    return dumped.strip()


def _time(found: Profile) -> list[str]:
    notes = [f"# {_safe(note, 200)}." for note in found["time_notes"]]
    if found["time"]:
        return [*notes, "# When each row happened: the test part is the latest.", f"time: {_quoted(found['time'])}"]
    if found["time_guess"]:
        return [
            "# Rows are split at random. If this column says when each row happened, name it: the test part is then",
            "# the latest, as it will be in life.",
            *notes,
            f"# time: {_quoted(found['time_guess'])}",
        ]
    return [*notes, "# Rows are split at random: no column says when they happened. (time: COLUMN)"]


def _key(found: Profile) -> list[str]:
    if found["key"]:
        return ["# Identifies a row: kept beside predictions, never a feature.", f"key: {_quoted(found['key'])}"]
    return []


def _features(found: Profile) -> list[str]:
    suspects: dict[str, float] = found["suspects"]
    lines = ["features:", "  # Never name what is known only after the fact: the model would be right in tests alone."]
    lines.append("  # near_duplicates, selection, skew and interactions choose more: docs/choices.md")
    for name, score in list(suspects.items())[:SHOWN]:
        says = f"{_safe(name)} alone says the target almost perfectly ({score:.3f})"
        lines.append(f"  # {says}: {_verdict(name, found)}")
    # The key is no feature anyway, and a spec may not say so twice in other words.
    left_out = [name for name in found["exclude"] if name != found["key"]]
    if not left_out:
        return [*lines, "  exclude: []"]
    return [*lines, "  exclude:", *(f"    - {_quoted(name)}" for name in left_out)]


def _verdict(name: str, found: Profile) -> str:
    if name in found["exclude"]:
        return "left out; take it off the list if it is known in advance."
    if name == found["last"]:
        return "a leak? It stays, for without it no column is left to learn from."
    return "a leak?"


def _unused(found: Profile) -> list[str]:
    """Columns that prepare will not use, and why: a person can mend most of them."""
    unused: dict[str, str] = found["unused"]
    lines = [f"  # Not used: {_safe(name)}: {_safe(why, 200)}." for name, why in list(unused.items())[:SHOWN]]
    return [*lines, f"  # Not used: {len(unused) - SHOWN} more."] if len(unused) > SHOWN else lines


def _window(found: Profile, least: int) -> tuple[str, str]:
    """The shortest window that usually holds *least* rows, and a comment on it."""
    rows: dict[str, int] = found["windows"]
    if not rows:
        return "day", ""
    window = next((window for window in WINDOWS if rows[window] >= least), WINDOWS[-1])
    few = "" if rows[window] >= least else ", too few: wait for more, or lower minimum_rows"
    return window, f"; here a {window} holds about {rows[window]:,} rows{few}"


def _rest(found: Profile) -> list[str]:
    least = Monitor().minimum_rows
    window, density = _window(found, least)
    when = found["time"] or "the event time that predict requests carry"
    return [
        "# For so long families and their parameters are tried; the best of them, or an average of the best, goes on.",
        "# It ends early when it gains no more. {trials: 100}, and more: docs/search.md. Left out, it trains once,",
        "# as `trainer`, `params` and `training` say (the README, under Trainers): a function of yours, for instance.",
        "search: {budget: 60s}",
        "",
        "training:",
        "  rounds: 400           # LightGBM's, at most; it stops when the rows that it is judged by get no better",
        "  seed: 0",
        "",
        "gate:",
        "  deadline: P14D        # without a decision by then, nothing is released",
        "",
        "monitor:",
        f"  # hour, day, week or month of {_safe(when)}{density}",
        f"  window: {window}",
        "  share: 0.5            # retrain when at least this share of the columns drifted",
        f"  minimum_rows: {least:<7} # a window with fewer rows says nothing",
    ]


def _quoted(text: str) -> str:
    """*text* as a YAML scalar on one line."""
    dumped: str = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=10**9)
    return dumped.strip()


def _safe(text: str, most: int = 60) -> str:
    """*text* in a comment: on one line, and short."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return line if len(line) <= most else line[: most - 3] + "..."


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
