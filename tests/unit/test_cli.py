"""The command line as a user meets it: real processes, no server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer

from everloop import cli, console
from everloop.cli.lifecycles import given_changes
from everloop.cli.rows import rows_of
from everloop.client import Client, error_of, load_spec
from everloop.client.encoding import encode
from everloop.errors import GateClosed, Invalid, InvalidSpec, NotAuthenticated, Unavailable

SPEC = {"model": "churn", "task": "binary", "target": "left", "source": {"path": "rows.csv"}}


def everloop(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "everloop.cli", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | environment,
        timeout=60,
        check=False,
    )


def test_help_loads_neither_temporal_nor_http_nor_dask():
    code = "import sys, everloop.cli; print(*sys.modules)"

    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )

    assert not loaded & {"temporalio", "httpx", "distributed", "pandas", "numpy", "sqlmodel", "yaml", "pydantic"}


def test_a_command_without_a_running_stack_says_how_to_start_one(tmp_path):
    done = everloop("list", "--data-dir", str(tmp_path / "none"))

    assert done.returncode == 1
    assert "everloop up" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_data_folder_comes_from_the_environment_too(tmp_path):
    done = everloop("down", EVERLOOP_DATA_DIR=str(tmp_path / "from-environment"))

    assert done.returncode == 0
    assert "from-environment" in done.stdout


def test_every_command_that_ends_by_itself_has_json():
    """Workers, `api` and `serve` run until they are stopped: what they write is lines of JSON anyway."""
    command = typer.main.get_command(cli.app)
    commands = dict(command.commands) | {
        f"{group} {name}": one
        for group in ("budget", "journal", "keys", "lease", "node", "pool", "queue")
        for name, one in command.commands[group].commands.items()
    }
    without = {name for name, one in commands.items() if not any("--json" in option.opts for option in one.params)}

    assert without == {"budget", "journal", "keys", "lease", "node", "queue", "worker", "api", "serve"}


def test_init_prints_the_spec_as_json_that_submits(tmp_path):
    table = tmp_path / "churn.csv"
    table.write_text("age,left\n" + "\n".join(f"{n * 7 % 60},{n % 2}" for n in range(200)) + "\n")
    place = tmp_path / "churn.yaml"

    done = everloop("init", str(table), "--target", "left", "-o", str(place), "--json")
    again = everloop("init", str(table), "--target", "left", "-o", str(place), "--json")

    said = json.loads(done.stdout)
    assert said["file"] == str(place)
    assert load_spec(said["spec"]) == load_spec(place)
    assert json.loads(again.stderr)["error"]["field"] == "--output"


def test_reset_and_errors_are_json_when_asked(tmp_path):
    folder = tmp_path / "data"
    nothing = everloop("reset", "--yes", "--json", "--data-dir", str(folder))
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    refused = everloop("reset", "--yes", "--json", "--data-dir", str(folder))

    assert json.loads(nothing.stdout)["removed"] is False
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert json.loads(refused.stderr)["error"]["code"] == "foreign_folder"
    assert (folder / "thesis.tex").exists()


def test_a_start_that_is_refused_says_so_in_json(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")

    refused = everloop("up", "--json", "--data-dir", str(tmp_path))

    assert refused.returncode == 1
    assert json.loads(refused.stderr)["error"]["code"] == "foreign_folder"


def test_a_wrong_option_is_a_usage_error():
    assert everloop("list", "--nonsense").returncode == 2
    assert everloop("submit").returncode == 2


def test_a_setting_that_is_not_a_number_is_one_line(tmp_path):
    done = everloop("list", EVERLOOP_PORT_BASE="many", EVERLOOP_DATA_DIR=str(tmp_path))

    assert done.returncode == 1
    assert "EVERLOOP_PORT_BASE" in done.stderr
    assert "Traceback" not in done.stderr


def test_rejecting_needs_a_comment():
    done = everloop("reject", "churn-1")

    assert done.returncode == 2
    assert "--comment" in done.stderr


@pytest.mark.parametrize("text", ["{", "[1, 2]", "[]", '"row"'])
def test_rows_that_are_not_rows_are_refused_with_the_field(text, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(text)

    with pytest.raises(Invalid) as refused:
        rows_of(str(path), dict)

    assert refused.value.field == "rows"


def test_rows_come_from_json_lines(tmp_path):
    lines = tmp_path / "rows.jsonl"
    lines.write_text('{"a": 1}\n{"a": null}\n')

    assert rows_of(str(lines), dict) == [{"a": 1}, {"a": None}]


SCHEMA = {
    "task": "binary",
    "target": "left",
    "time": "year",
    "key": "id",
    "fields": [
        {"name": "age", "kind": "number"},
        {"name": "zip", "kind": "category"},
        {"name": "in", "kind": "boolean"},
        {"name": "since", "kind": "datetime"},
    ],
}


def test_a_csv_is_read_by_the_models_schema(tmp_path):
    table = tmp_path / "rows.CSV"
    table.write_text(
        "\ufeffid;age;zip;in;since;year;note\n"
        "007;+41;20.10;TRUE;01.02.2024;2024;?\n"
        "8;?;None;NA;-;2025;NA\n"
        "\n"
        "9;1e3;nan;false;;2026;1\n"
        "10;inf;9;maybe;soon;;\n"
    )

    rows = rows_of(str(table), lambda: SCHEMA)

    names = ["id", "age", "zip", "in", "since", "year", "note"]
    assert [[row[name] for name in names] for row in rows] == [
        ["007", 41, "20.10", True, "01.02.2024", 2024, "?"],
        [8, None, "None", None, None, 2025, None],
        [9, 1000.0, None, False, None, 2026, "1"],
        [10, None, "9", "maybe", "soon", None, None],  # what does not fit is for the server to refuse, by its name
    ]


@pytest.mark.parametrize("text", ["", "age,zip\n", "age,zip\n1\n"])
def test_a_csv_without_whole_rows_is_refused(text, tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text(text)

    with pytest.raises(Invalid, match=r"rows\.csv"):
        rows_of(str(table), lambda: SCHEMA)


# --- specs


def test_a_relative_source_in_a_file_is_relative_to_the_file(tmp_path):
    path = tmp_path / "churn.yaml"
    path.write_text("model: churn\ntask: binary\ntarget: left\nsource:\n  path: rows.csv\n")

    assert load_spec(path)["source"]["path"] == str(tmp_path / "rows.csv")


def test_a_spec_with_an_unknown_field_names_it():
    with pytest.raises(InvalidSpec) as refused:
        load_spec(SPEC | {"traget": "left"})

    assert refused.value.field == "traget"


def test_a_spec_that_contradicts_itself_names_the_field():
    with pytest.raises(InvalidSpec) as refused:
        load_spec(SPEC | {"metric": "rmse"})

    assert refused.value.field == "metric"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"features": {"include": [f"column-{n}" for n in range(4000)]}}, "features.include"),
        ({"features": {"exclude": [f"column-{n}" for n in range(4000)]}}, "features.exclude"),
        ({"monitor": {"every": "P1000D"}}, "monitor.every"),
        ({"monitor": {"idle": "P1000D"}}, "monitor.idle"),
    ],
)
def test_a_spec_out_of_bounds_names_the_field(changes, field):
    with pytest.raises(InvalidSpec) as refused:
        load_spec(SPEC | changes)

    assert refused.value.field == field


@pytest.mark.parametrize(("name", "text"), [("a.yaml", "a: ["), ("a.json", "{"), ("b.yaml", "- 1"), ("c.yaml", "")])
def test_a_file_that_is_no_spec_is_refused(name, text, tmp_path):
    (tmp_path / name).write_text(text)

    with pytest.raises(InvalidSpec, match=name):
        load_spec(tmp_path / name)


def test_a_missing_spec_says_how_to_make_one(tmp_path):
    with pytest.raises(InvalidSpec) as refused:
        load_spec(tmp_path / "none.yaml")

    assert "everloop init" in refused.value.hint


# --- the client


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan")])
def test_nan_in_a_row_is_refused_with_its_place(value, tmp_path):
    client = Client("http://127.0.0.1:1", "key", tmp_path)

    with pytest.raises(Invalid) as refused:
        client.predict("churn", [{"age": 1}, {"age": value}])

    assert refused.value.field == "rows[1].age"


def test_what_pandas_calls_missing_is_sent_as_null():
    assert json.loads(encode({"a": pd.NA, "b": pd.NaT, "c": np.int64(3)})) == {"a": None, "b": None, "c": 3}


def test_a_client_without_a_stack_is_refused(tmp_path):
    with pytest.raises(Unavailable):
        Client(data_dir=tmp_path)


def test_a_client_without_a_key_is_refused(tmp_path):
    with pytest.raises(NotAuthenticated):
        Client("http://127.0.0.1:1", data_dir=tmp_path)


def test_a_problem_becomes_the_error_of_its_code():
    import httpx

    problem = {"code": "gate_closed", "detail": "the gate is closed", "field": "", "hint": "look again"}
    answer = httpx.Response(409, json=problem, request=httpx.Request("POST", "http://x/"))

    error = error_of(answer)

    assert type(error) is GateClosed
    assert str(error) == "the gate is closed"
    assert error.hint == "look again"


def test_a_call_is_repeated_with_the_same_key_until_the_api_answers(tmp_path):
    """A real server that answers 503 twice: the third attempt settles it under the first one's key."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    seen: list[str] = []

    class Api(BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append(self.headers["Idempotency-Key"])
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"id": seen[-1], "code": "unavailable", "detail": "not yet"}).encode()
            self.send_response(503 if len(seen) < 3 else 202)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with Client(f"http://127.0.0.1:{server.server_port}", "key", tmp_path) as client:
            answer = client.submit(SPEC)
            again = client.submit(SPEC)
    finally:
        server.shutdown()
        server.server_close()

    assert seen[0] == seen[1] == seen[2] == answer["id"]
    assert seen[0].startswith("churn-")
    assert again["id"] != answer["id"]


def test_a_prediction_with_nan_is_refused_before_it_is_sent(tmp_path):
    with Client("http://127.0.0.1:1", "key", tmp_path) as client, pytest.raises(Invalid, match="NaN"):
        client.predict("churn", {"age": float("nan")})


# --- what is shown


def rendered(value: object, width: int) -> str:
    from rich.console import Console

    narrow = Console(width=width, no_color=True, highlight=False)
    with narrow.capture() as captured:
        narrow.print(value)
    return captured.get()


def parked() -> dict[str, object]:
    error = {
        "stage": "validate",
        "message": "the target has one value",
        "field": "target",
        "hint": "choose another target",
        "log_tail": [f"line {n}" for n in range(20)],
    }
    zero, two, three = (f"2026-01-01T00:00:0{second}Z" for second in (0, 2, 3))
    ran = {"attempt": 2, "kept": True}
    stages = [
        {"stage": "snapshot", "status": "done", "started_at": zero, "ended_at": two, "summary": "9 rows", "ran": ran},
        {"stage": "validate", "status": "failed", "started_at": two, "ended_at": three, "error": error},
    ]
    return {"id": "churn-1", "status": "needs_attention", "stage": "validate", "error": error, "stages": stages}


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_parked_lifecycle_shows_its_log_and_what_helps_at_any_width(width):
    text = " ".join(rendered(console.lifecycle(parked()), width).split())

    assert "the target has one value" in text
    assert "line 19" in text
    assert "everloop retry churn-1" in text
    assert "everloop skip churn-1" in text  # validate is a stage that can be done without
    assert "attempt 2, kept" in text


def test_a_stage_that_cannot_be_skipped_is_not_offered_to_be():
    found = parked()
    found["error"] = found["error"] | {"stage": "train"}

    assert "everloop skip" not in rendered(console.lifecycle(found), 100)


def test_set_stands_over_what_the_spec_says():
    changed = load_spec(SPEC, {"target_missing": "drop", "training.rounds": 50, "columns.age.type": "number"})

    assert (changed["target_missing"], changed["training"]) == ("drop", {"rounds": 50})
    assert changed["columns"] == {"age": {"type": "number"}}
    assert given_changes(["training.rounds=50", "positive='1'", "metric="]) == {
        "training.rounds": 50,
        "positive": "1",
        "metric": None,
    }
    for given in ("drop", "=drop", "metric=[", "metric: auc"):
        with pytest.raises(Invalid) as refused:
            given_changes([given])
        assert refused.value.field == "--set"
    with pytest.raises(InvalidSpec, match="target holds no fields"):
        load_spec(SPEC, {"target.x": 1})
    with pytest.raises(InvalidSpec, match="rownds"):
        load_spec(SPEC, {"training.rownds": 50})


# --- the README


def test_every_setting_is_in_the_readme():
    root = Path(cli.__file__).parents[2]
    source = (root / "everloop" / "settings.py").read_text()
    names = {part.split('"')[0] for part in source.split('"')[1::2] if part.startswith("EVERLOOP_")}

    missing = [name for name in sorted(names) if f"`{name}`" not in (root / "README.md").read_text()]

    assert len(names) >= 10
    assert not missing
