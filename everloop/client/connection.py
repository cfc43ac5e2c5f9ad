"""A connection to one deployment: its address, its key, and how a call is sent."""

import random
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from everloop import errors, stack
from everloop import settings as configuration
from everloop.client.encoding import encode
from everloop.client.shapes import Json
from everloop.errors import EverloopError, Invalid, NotAuthenticated, Unavailable
from everloop.settings import Settings

PATIENCE_SECONDS = 30.0
"""How long a call is tried again while the API does not answer, or answers 503."""


class Connection:
    """What every part of `Client` calls through."""

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
            request["content"] = encode(request.pop("json"))
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


def _key(settings: Settings) -> str:
    path = settings.keys_dir / "client.key"
    try:
        return path.read_text().strip()
    except OSError:
        raise NotAuthenticated(
            f"no key is found at {path}", hint="start the stack with `everloop up`, or give a key"
        ) from None
