"""What an error is on the wire: one table from class to status, one shape (RFC 9457 problem+json).

Nothing that was sent is echoed, and an unexpected error says only its request id; its stack goes to our log.
"""

import logging
import re
from http import HTTPStatus
from typing import Any

import pydantic
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from api import pages
from everloop import errors
from everloop.errors import EverloopError

log = logging.getLogger("everloop.api")

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 5

STATUS: dict[type[EverloopError], int] = {
    errors.Malformed: 400,
    errors.NotAuthenticated: 401,
    errors.Refused: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.TooLarge: 413,
    errors.UnsupportedMedia: 415,
    errors.WrongHost: 421,
    errors.IdempotencyMismatch: 422,
    errors.Permanent: 422,
    errors.IntegrityError: 500,
    errors.Transient: 503,
    errors.StorageLow: 507,
    EverloopError: 500,
}
"""The nearest class of an error's family tree counts."""


def status(error: EverloopError) -> int:
    """The HTTP status of *error*."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def body(error: EverloopError, request_id: str) -> dict[str, Any]:
    """The problem document of *error*."""
    return {
        "type": f"urn:everloop:problem:{errors.code(type(error))}",
        "status": status(error),
        "request_id": request_id,
        **errors.told(error),
    }


def response(error: EverloopError, request_id: str) -> JSONResponse:
    """The answer that says *error*."""
    number = status(error)
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if number == HTTPStatus.SERVICE_UNAVAILABLE else {}
    headers |= {"WWW-Authenticate": "Bearer"} if number == HTTPStatus.UNAUTHORIZED else {}
    return JSONResponse(body(error, request_id), number, headers, MEDIA_TYPE)


def answer(error: EverloopError, scope: Scope) -> Response:
    """What *error* looks like to who asks: a page under a page's address, else the problem document."""
    request_id = str(scope.get("everloop_request_id", ""))
    if scope.get("everloop_pages") and not scope["path"].startswith("/api/"):
        return pages.problem(error, status(error), request_id)
    return response(error, request_id)


def request_id(request: Request) -> str:
    return str(request.scope.get("everloop_request_id", ""))


def unexpected(request_id: str) -> EverloopError:
    """What a caller is told about an error that nobody foresaw."""
    return EverloopError(hint=f"the log of the API has the details under {request_id}")


def invalid(
    found: pydantic.ValidationError | RequestValidationError, kind: type[EverloopError] = errors.InvalidSpec
) -> EverloopError:
    """The first thing that validation found, with its field; how many more there are is said too."""
    faults = list(found.errors())
    first = faults[0]
    where = first["loc"][1:] if isinstance(found, RequestValidationError) else first["loc"]  # without `query`, `path`
    field = ".".join(str(part) for part in where)
    message = _printable(str(first["msg"]).removeprefix("Value error, "))
    named = re.match(r"([a-z_.]+): ", message)
    if not field and named:  # a rule over several fields begins its message with the one to change
        field, message = named[1], message.removeprefix(named[0])
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return kind(
        f"{field}: {message}{more}" if field else f"{message}{more}", field=field, hint=_hint(str(first["type"]))
    )


def install(app: FastAPI) -> None:
    """Answer every error of *app* by the table above."""

    @app.exception_handler(EverloopError)
    async def _ours(request: Request, error: EverloopError) -> Response:
        if status(error) == HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("%s: %s", request_id(request), error, exc_info=error)
        return answer(error, request.scope)

    @app.exception_handler(RequestValidationError)
    async def _query(request: Request, error: RequestValidationError) -> Response:
        return answer(invalid(error, errors.Invalid), request.scope)

    @app.exception_handler(HTTPException)
    async def _framework(request: Request, error: HTTPException) -> Response:
        told = _translated(error, request.app.openapi_url)
        if error.status_code != HTTPStatus.METHOD_NOT_ALLOWED:
            return answer(told, request.scope)
        problem = body(told, request_id(request)) | {"status": 405, "code": "method_not_allowed"}
        return JSONResponse(problem, 405, error.headers, MEDIA_TYPE)


def _translated(error: HTTPException, openapi: str) -> EverloopError:
    if error.status_code == HTTPStatus.NOT_FOUND:
        return errors.NotFound("there is no such address", hint=f"the addresses are in {openapi}")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return errors.Invalid("this address does not answer that method")
    return errors.Invalid(str(error.detail))


def _hint(kind: str) -> str:
    return {
        "extra_forbidden": "remove it, or correct its spelling",
        "missing": "add it",
    }.get(kind, "")


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)[:500]
