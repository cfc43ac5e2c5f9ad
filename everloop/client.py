"""The API in Python: `Client().submit("spec.yaml")`. Every call answers or raises an error of `everloop.errors`.

Answers are the API's JSON as plain dicts and lists: what a notebook prints is what the CLI's `--json` prints.
"""

import json
import math
import os
import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, Union, overload
from urllib.parse import quote, urljoin

import httpx

from everloop import errors, stack
from everloop import settings as configuration
from everloop.errors import EverloopError, Invalid, InvalidSpec, NotAuthenticated, Unavailable
from everloop.label_calls import LabelCalls
from everloop.pool_calls import PoolCalls
from everloop.prediction_calls import PredictionCalls
from everloop.searches import SearchCalls
from everloop.settings import Settings

if TYPE_CHECKING:
    from everloop.specs import LifecycleSpec

Json = dict[str, Any]
Rows = list[Json]
Spec = Union["LifecycleSpec", Mapping[str, Any], str, Path]

MISSING_TYPES = frozenset({"NAType", "NaTType"})
"""What pandas calls a missing value; this client must not load pandas to ask."""
PATIENCE_SECONDS = 30.0
"""How long a call is tried again while the API does not answer, or answers 503."""
RUNNING = frozenset({"running", "waiting_approval", "needs_attention"})
"""Statuses of a lifecycle that has not ended."""
FAR_SECONDS = 10 * 365 * 86400.0


class Client(PoolCalls, PredictionCalls, SearchCalls, LabelCalls):
    """A connection to one deployment as one person. Safe to share between threads; use as a context manager."""

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        data_dir: str | Path | None = None,
        *,
        serve_url: str | None = None,
    ) -> None:
        """Connect to *url* with *key*; left out, both are found in the data folder of the running stack.

        Raises `Unavailable` when nothing runs there.
        """
        settings = configuration.load(data_dir=Path(data_dir) if data_dir else None)
        up = stack.read(settings) if url is None or serve_url is None else None
        if url is None and up is None:
            raise Unavailable(
                f"Everloop does not run on {settings.data_dir}", hint="start it with `everloop up`, or give its url"
            )
        self.settings = settings
        self.url = (url or (up.api_url if up else "")).rstrip("/")
        self.serve_url = (serve_url or (up.serve_url if up else settings.serve_url)).rstrip("/")
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {key or _key(settings)}", "Accept": "application/json"},
            timeout=httpx.Timeout(60, connect=5),
            trust_env=False,  # a proxy has no business with loopback
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # --- lifecycles

    def submit(self, spec: Spec, key: str | None = None, changes: Mapping[str, Any] | None = None) -> Json:
        """Start a lifecycle; answers it. *key* is its id: the same key again answers the same lifecycle.

        Without *key* each call starts a new one, under a key that this call's own retries reuse. *changes* stand over
        what the spec says: `{"target_missing": "drop", "training.rounds": 50}`.
        """
        body = load_spec(spec, changes)
        key = key or f"{body.get('model', 'model')}-{secrets.token_hex(4)}"
        return _object(self._api("POST", "/lifecycles", json=body, headers={"Idempotency-Key": key}))

    def list(self, limit: int = 50, status: str | None = None, model: str | None = None) -> Rows:
        """The latest lifecycles, newest first."""
        return _items(self._api("GET", "/lifecycles", params=_given(limit=limit, status=status, model=model)))

    def show(self, lifecycle: str) -> Json:
        """A lifecycle as it is now: status, stages, wait, metrics, failure; its `links` are whole URLs."""
        found = _object(self._api("GET", f"/lifecycles/{_part(lifecycle)}"))
        links = {name: urljoin(self.url, link) for name, link in found.get("links", {}).items()}
        return found | {"links": links}

    def events(self, lifecycle: str) -> Rows:
        """What happened to it, oldest first."""
        return _items(self._api("GET", f"/lifecycles/{_part(lifecycle)}/events"))

    @overload
    def logs(
        self,
        lifecycle: str,
        stage: str | None = None,
        tail: int | None = None,
        *,
        follow: Literal[False] = False,
        rank: int = 0,
    ) -> str: ...

    @overload
    def logs(
        self, lifecycle: str, stage: str | None = None, tail: int | None = None, *, follow: Literal[True]
    ) -> Iterator[Json]: ...

    def logs(
        self, lifecycle: str, stage: str | None = None, tail: int | None = None, *, follow: bool = False, rank: int = 0
    ) -> str | Iterator[Json]:
        """The last *tail* lines of a stage's log (of the stage that runs or ran last, when none is named).

        *rank*: of a stage that several processes run together; what is followed is rank 0's.

        With *follow*: an iterator over all that its jobs write, stage after stage, until the lifecycle waits for a
        person or has ended. Each item is `{"stage", "attempt", "text"}`, the last one `{"status", "wait"}`. It
        begins with the first log, or with the last *tail* lines of the newest. A stack that comes back within
        `PATIENCE_SECONDS` is waited for, and no line is lost or told twice.
        """
        if follow:
            return self._follow(lifecycle, stage, tail)
        path = f"/lifecycles/{_part(lifecycle)}/logs"
        return str(self._api("GET", path, params=_given(stage=stage, tail=tail, rank=rank or None)))

    def data(self, lifecycle: str) -> Json:
        """What its latest snapshot has read: per column its kind, how it was read, missing values, bars of a histogram
        and what the rules changed; how many rows have no target. Raises `NotFound` before the snapshot stage has ended.
        """
        return _object(self._api("GET", f"/lifecycles/{_part(lifecycle)}/data"))

    def rejected(self, lifecycle: str) -> str:
        """The values that are not as its spec declares, as CSV: file, row, column, value. Up to 10,000 of them.

        Raises `NotFound` where there is none.
        """
        return str(self._api("GET", f"/lifecycles/{_part(lifecycle)}/rejected"))

    def kept(self, lifecycle: str) -> Rows:
        """The files that its jobs kept for people (`log_artifact`), each with stage, start of the stage and size."""
        return _items(self._api("GET", f"/lifecycles/{_part(lifecycle)}/kept"))

    def artifact(self, lifecycle: str, stage: str, name: str, start: int | None = None) -> bytes:
        """A file that a stage kept: what its trainer gave to `log_artifact`, or `environment.json`.

        Of its latest start that kept one of this name, or of the one with the number *start*; `kept` lists them all.
        Raises `NotFound`.
        """
        path = f"/lifecycles/{_part(lifecycle)}/artifacts/{quote(stage, safe='')}/{quote(name, safe='')}"
        content: bytes = self._api("GET", path, params=_given(start=start))
        return content

    def _follow(self, lifecycle: str, stage: str | None, tail: int | None) -> Iterator[Json]:
        path, cursor = f"/lifecycles/{_part(lifecycle)}/logs/follow", ""
        while True:
            asked = _given(stage=stage, cursor=cursor or None, tail=tail)
            found = _object(self._api("GET", path, params=asked))
            yield from found["items"]
            cursor = found["cursor"]
            if found["over"]:
                yield {"status": found["status"], "wait": found["wait"]}
                return

    def curves(self, lifecycle: str, rank: int = 0) -> Rows:
        """The learning curves of its last training: per metric the steps, what they are called (`unit`), the values on
        train and validation rows, and the best step. Each has 200 steps at most. *rank*: of several that have learned
        together.
        """
        return _items(self._api("GET", f"/lifecycles/{_part(lifecycle)}/curves", params=_given(rank=rank or None)))

    def metrics(self, lifecycle: str) -> Any:  # noqa: ANN401
        """Progress of its jobs: values by step."""
        return self._api("GET", f"/lifecycles/{_part(lifecycle)}/metrics")

    def wait(
        self,
        lifecycle: str,
        until: Literal["end", "gate"] | Callable[[Json], bool] = "end",
        timeout: float | None = None,
        every: float = 0.5,
    ) -> Json:
        """Wait until the lifecycle has ended, or (`until="gate"`) until it needs a person; answers it.

        `needs_attention` always ends the wait: only a person can go on from there. *timeout* and *every* are
        seconds. Raises `Unavailable` when *timeout* has passed.
        """
        done = until if callable(until) else _until(until)
        deadline = time.monotonic() + (FAR_SECONDS if timeout is None else timeout)
        while True:
            found = self.show(lifecycle)
            if done(found) or found["status"] == "needs_attention" or found["status"] not in RUNNING:
                return found
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"{lifecycle} is still {found['status']} at stage {found.get('stage') or '-'}",
                    hint=f"`everloop show {lifecycle}` says what it waits for",
                )
            time.sleep(every)

    def retry(self, lifecycle: str) -> Json:
        """Try the failed stage of a parked lifecycle again."""
        return self._attend(lifecycle, "retry", {})

    def skip(self, lifecycle: str, reason: str = "") -> Json:
        """Go on without the failed stage of a parked lifecycle, where it can be done without."""
        return self._attend(lifecycle, "skip", {"reason": reason})

    def abort(self, lifecycle: str, reason: str = "") -> Json:
        """End a parked lifecycle."""
        return self._attend(lifecycle, "abort", {"reason": reason})

    def cancel(self, lifecycle: str, reason: str = "") -> Json:
        """Ask a running lifecycle to end; its jobs are stopped."""
        return self._attend(lifecycle, "cancel", {"reason": reason})

    def fork(self, lifecycle: str, stage: str, changes: Json | None = None, key: str | None = None) -> Json:
        """Start a lifecycle that keeps what *lifecycle* found before *stage*; answers it.

        *changes*: fields of the spec by dotted names, `{"training.rounds": 800}`. Raises `Invalid` when an earlier
        stage reads one of them, `Conflict` when what is before *stage* is not done.
        """
        key = key or f"{lifecycle.rpartition('/')[2][:100]}-fork-{secrets.token_hex(4)}"
        path = f"/lifecycles/{_part(lifecycle)}/fork"
        body = {"stage": stage, "changes": changes or {}}
        return _object(self._api("POST", path, json=body, headers={"Idempotency-Key": key}))

    def pause(self, lifecycle: str, reason: str = "") -> Json:
        """End its running job at a checkpoint, give its slot to others, and begin nothing until `resume`.

        Raises `NotWaiting` at the gate and after it, where it runs no job.
        """
        return self._attend(lifecycle, "pause", {"reason": reason})

    def resume(self, lifecycle: str) -> Json:
        """Let a paused lifecycle go on with the stage that it was at. Raises `NotWaiting` when it is not paused."""
        return self._attend(lifecycle, "resume", {})

    def _attend(self, lifecycle: str, action: str, body: Json) -> Json:
        return _object(self._api("POST", f"/lifecycles/{_part(lifecycle)}/{action}", json=body))

    # --- gates

    def approvals(self, status: str = "open") -> Rows:
        """The gates where a person is asked."""
        return _items(self._api("GET", "/approvals", params={"status": status}))

    def approval(self, lifecycle: str) -> Json:
        """The gate of a lifecycle with its evidence and the digest that a decision names."""
        return _object(self._api("GET", f"/approvals/{_part(lifecycle)}"))

    def approve(self, lifecycle: str, comment: str = "", evidence_digest: str | None = None) -> Json:
        """Sign a yes to the evidence with *evidence_digest* (the gate's present one when left out).

        Raises `EvidenceChanged` when the gate has other evidence by now, `GateClosed` when it was decided.
        """
        return self._decide(lifecycle, "approve", comment, evidence_digest)

    def reject(self, lifecycle: str, comment: str, evidence_digest: str | None = None) -> Json:
        """Sign a no. A comment is required: it is the reason that everybody reads."""
        return self._decide(lifecycle, "reject", comment, evidence_digest)

    def _decide(self, lifecycle: str, verdict: str, comment: str, digest: str | None) -> Json:
        digest = digest or self.approval(lifecycle)["evidence_digest"]
        body = {"verdict": verdict, "comment": comment, "evidence_digest": digest}
        return _object(self._api("POST", f"/approvals/{_part(lifecycle)}/decision", json=body))

    # --- models

    def models(self) -> Rows:
        """The models that there are, with the version that answers now."""
        return _items(self._api("GET", "/models"))

    def model(self, model: str, project: str = "default") -> Json:
        """A model: its route, versions, monitor and drift checks."""
        return _object(self._api("GET", f"/models/{_part(model)}", params={"project": project}))

    def roll_back(self, model: str, reason: str, release_seq: int | None = None, project: str = "default") -> Json:
        """Send a model's traffic back to the version before its latest release; answers what answers now.

        *release_seq*: the release to undo, as `model` shows it. Raises `Conflict` when that is not the latest one,
        or when there is no version before it. Sent again after an answer was lost, it undoes nothing more.
        """
        seen = release_seq if release_seq is not None else self.model(model, project)["route"]["release_seq"]
        body = {"release_seq": seen, "reason": reason}
        return _object(self._api("POST", f"/models/{_part(model)}/roll-back", params={"project": project}, json=body))

    def check(self, model: str, project: str = "default") -> Json:
        """Let the model's monitor look now, not only when it is due."""
        return _object(self._api("POST", f"/models/{_part(model)}/check", params={"project": project}))

    def checks(self, model: str, project: str = "default", *, before: int | None = None, limit: int = 200) -> Rows:
        """The last windows that the monitor looked at, oldest first; *before*: those ahead of that number."""
        asked = {"project": project, "limit": limit} | ({} if before is None else {"before": before})
        return _items(self._api("GET", f"/models/{_part(model)}/checks", params=asked))

    def rearm(self, model: str, project: str = "default") -> Json:
        """Let the model's monitor cause retrainings again, whatever came of those before. Safe to repeat."""
        return _object(self._api("POST", f"/models/{_part(model)}/rearm", params={"project": project}))

    def predict(
        self,
        model: str,
        rows: Sequence[Mapping[str, Any]] | Mapping[str, Any],
        *,
        event_time: str | datetime | None = None,
        request_id: str | None = None,
        project: str | None = None,
        **more: Any,  # noqa: ANN401
    ) -> Json:
        """Ask the released version about one row (a mapping) or many. *event_time* is when they happened.

        Further names (`key`, `keys`, `event_times`) go into the request as they are. Raises `InvalidPrediction`,
        which names the field, and `NotFound` when nothing is released under that name.
        """
        when = event_time.isoformat() if isinstance(event_time, datetime) else event_time
        body: Json = {"row": rows} if isinstance(rows, Mapping) else {"rows": list(rows)}
        body |= _given(event_time=when, request_id=request_id or secrets.token_hex(8), **more)
        place = f"models/{_part(model)}" if project is None else f"projects/{_part(project)}/models/{_part(model)}"
        return _object(self._call("POST", f"{self.serve_url}/{place}/predict", json=body))

    def schema(self, model: str, project: str = "default") -> Json:
        """The columns that the released version of a model takes, and what it answers."""
        return _object(self._call("GET", f"{self.serve_url}/models/{_part(model)}/schema", params={"project": project}))

    def serving(self) -> Any:  # noqa: ANN401
        """What the prediction server has loaded."""
        return self._call("GET", f"{self.serve_url}/status")

    # --- identity

    def login_url(self) -> str:
        """A one-time link that signs a browser in."""
        return str(_object(self._api("POST", "/login-links"))["url"])

    def credential(self, person: str) -> str:
        """A new key that stands for *person*."""
        return str(_object(self._api("POST", "/credentials", json={"person": person}))["key"])

    # --- HTTP

    def _download(self, path: str, target: Path, params: Json) -> int:
        """Write an answer of the API into a file, whole or not at all; how many rows it says that it has."""
        staged = target.with_name(f"{target.name}.part")
        url = f"{self.url}/api/v1{path}"
        try:
            with self._http.stream("GET", url, params=params, timeout=httpx.Timeout(None, connect=5)) as answer:
                if answer.is_error:
                    answer.read()
                    raise error_of(answer)
                with staged.open("wb") as file:
                    for piece in answer.iter_bytes():
                        file.write(piece)
            staged.replace(target)
        except httpx.TransportError as error:
            raise Unavailable(f"{self.url} does not answer ({type(error).__name__})") from None
        except OSError as error:
            raise Invalid(f"cannot write {target}: {error.strerror}", field="path") from None
        finally:
            staged.unlink(missing_ok=True)
        return int(answer.headers.get("x-rows", 0))

    def _api(self, method: str, path: str, **request: Any) -> Any:  # noqa: ANN401
        return self._call(method, f"{self.url}/api/v1{path}", **request)

    def _call(self, method: str, url: str, **request: Any) -> Any:  # noqa: ANN401
        """Send, and send again with back-off while nobody answers: every POST here is safe to repeat."""
        if "json" in request:
            request["content"] = _encode(request.pop("json"))
            request["headers"] = {"Content-Type": "application/json"} | request.get("headers", {})
        deadline = time.monotonic() + PATIENCE_SECONDS
        pause = 0.1
        while True:
            try:
                answer = self._http.request(method, url, **request)
            except httpx.TransportError as error:
                problem: EverloopError = Unavailable(
                    f"{url.split('/api/', maxsplit=1)[0]} does not answer ({type(error).__name__})",
                    hint="`everloop up` starts the stack; if it runs, its logs say why",
                )
            else:
                if answer.is_success and answer.headers.get("content-type") == "application/octet-stream":
                    return answer.content
                if answer.is_success:
                    is_json = "json" in answer.headers.get("content-type", "")
                    return (answer.json() if is_json else answer.text) if answer.content else {}
                problem = error_of(answer)
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    raise problem
            if time.monotonic() + pause > deadline:
                raise problem
            time.sleep(pause * random.uniform(0.7, 1.3))  # noqa: S311  # spreads retries, no secret
            pause = min(pause * 2, 2.0)


def error_of(answer: httpx.Response) -> EverloopError:
    """The error that an answer of the API stands for: its class by the problem's `code`."""
    try:
        problem = answer.json()
    except ValueError:
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    kinds = {errors.code(kind): kind for kind in errors.family().values()}
    fallback = NotAuthenticated if answer.status_code == httpx.codes.UNAUTHORIZED else EverloopError
    kind = kinds.get(str(problem.get("code")), fallback)
    detail = problem.get("detail") or problem.get("title") or f"HTTP {answer.status_code} from {answer.request.url}"
    return kind(str(detail), field=str(problem.get("field") or ""), hint=str(problem.get("hint") or ""))


def load_spec(spec: Spec, changes: Mapping[str, Any] | None = None) -> Json:
    """A spec as JSON: from a dict, a `LifecycleSpec`, or a YAML or JSON file; *changes* (dotted names) stand over it.

    A relative `source.path` or `code` in a file is relative to the file's folder, in a dict to the working folder.
    Raises `InvalidSpec` with the field; the API checks it again.
    """
    from everloop.specs import LifecycleSpec

    if isinstance(spec, LifecycleSpec):
        value, folder = spec.model_dump(mode="json"), Path.cwd()
    elif isinstance(spec, Mapping):
        value, folder = dict(spec), Path.cwd()
    else:
        value, folder = _read(Path(spec))
    for name, changed in (changes or {}).items():
        value = _with(value, name, name.split("."), changed)
    return _checked(value, folder)


def _with(value: Json, name: str, path: Sequence[str], changed: Any) -> Json:  # noqa: ANN401
    """*value* with *changed* at *path*. Raises `InvalidSpec` where something else than a mapping is in the way."""
    first, rest = path[0], path[1:]
    if not rest:
        return value | {first: changed}
    inner = value.get(first) or {}
    if not isinstance(inner, dict):
        raise InvalidSpec(f"{name}: {first} holds no fields", field=name)
    return value | {first: _with(inner, name, rest, changed)}


def _read(path: Path) -> tuple[Json, Path]:
    """A file's mapping, and the folder that paths in it are relative to."""
    import yaml

    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise InvalidSpec(
            f"cannot read {path}: {why}", field="spec", hint="`everloop init DATA.csv --target COLUMN` writes a spec"
        ) from None
    try:
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise InvalidSpec(f"{path} is not {kind}: {_one_line(error)}", field="spec") from None
    if not isinstance(value, dict):
        raise InvalidSpec(f"{path} must hold a mapping, not {type(value).__name__}", field="spec")
    return value, path.absolute().parent


def _checked(value: Json, folder: Path) -> Json:
    from everloop.specs import checked

    source = value.get("source")
    if isinstance(source, dict) and isinstance(source.get("path"), str) and source["path"]:
        value = value | {"source": source | {"path": str(folder / Path(source["path"]).expanduser())}}
    code = value.get("code")
    if isinstance(code, str) and code and not code.startswith("sha256:"):
        value = value | {"code": os.path.normpath(folder / Path(code).expanduser())}
    checked(value)
    return json.loads(_encode(value))  # type: ignore[no-any-return]


def _encode(value: object) -> bytes:
    def plain(item: object) -> object:
        if type(item).__name__ in MISSING_TYPES:
            return None
        if isinstance(item, datetime):
            return item.isoformat()
        if hasattr(item, "item"):  # a numpy scalar
            return item.item()
        return str(item)

    try:
        return json.dumps(value, default=plain, allow_nan=False).encode()
    except ValueError:
        where = next(_not_finite(value), "")
        raise errors.Invalid(
            f"{where or 'a value'} is NaN or Infinity, which are not JSON",
            field=where,
            hint="send null (None) for a missing value",
        ) from None


def _not_finite(value: object, where: str = "") -> Iterator[str]:
    """Where *value* holds NaN or Infinity: `rows[3].age`."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _not_finite(item, f"{where}.{name}" if where else str(name))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _not_finite(item, f"{where}[{index}]")
    else:
        number = value.item() if hasattr(value, "item") else value
        if isinstance(number, float) and not math.isfinite(number):
            yield where


def _key(settings: Settings) -> str:
    path = settings.keys_dir / "client.key"
    try:
        return path.read_text().strip()
    except OSError:
        raise NotAuthenticated(
            f"no key is found at {path}", hint="start the stack with `everloop up`, or give a key"
        ) from None


def _until(until: str) -> Callable[[Json], bool]:
    if until == "gate":
        return lambda found: found["status"] == "waiting_approval"
    if until == "end":
        return lambda _: False  # `wait` itself sees the end
    raise errors.Invalid(f"until must be 'end', 'gate' or a function, not {until!r}", field="until")


def _part(name: str) -> str:
    """A lifecycle id may contain slashes, which stay as they are in the path."""
    return quote(name, safe="/")


def _given(**values: Any) -> Json:  # noqa: ANN401
    return {name: value for name, value in values.items() if value is not None}


def _items(answer: Any) -> Rows:  # noqa: ANN401
    return list(answer["items"] if isinstance(answer, dict) else answer)


def _object(answer: Any) -> Json:  # noqa: ANN401
    return answer if isinstance(answer, dict) else {"answer": answer}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
