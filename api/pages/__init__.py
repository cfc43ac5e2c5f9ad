"""Pages: Jinja templates that escape everything, and how they write moments, spans and figures."""

import math
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape
from starlette.responses import HTMLResponse

from everloop.durations import span
from everloop.errors import EverloopError

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"

_templates = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True)


_templates.globals["simulated"] = ""


def say_on_every_page(banner: str) -> None:
    """Above all that the pages show, from now on."""
    _templates.globals["simulated"] = banner


def render(template: str, status: int = 200, *, refresh: int = 0, **context: Any) -> HTMLResponse:  # noqa: ANN401
    """The page *template*. The browser asks again after *refresh* seconds, unless it is 0."""
    text = _templates.get_template(template).render(now=datetime.now(UTC), refresh=refresh, **context)
    return HTMLResponse(text, status, {"Refresh": str(refresh)} if refresh else {})


def problem(error: EverloopError, status: int, request_id: str) -> HTMLResponse:
    """The page that says *error*."""
    return render("problem.html", status, error=error, number=status, request_id=request_id)


def moment(value: datetime | None) -> str:
    """A moment as people read it, UTC."""
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}" if value else ""


def ago(value: datetime | None) -> str:
    """How long ago *value* was, in its largest unit."""
    if value is None:
        return ""
    seconds = (datetime.now(UTC) - value).total_seconds()
    if seconds < 1:
        return "just now"
    return f"{int(seconds)} s ago" if seconds < 60 else f"{' '.join(span(seconds).split()[:2])} ago"  # noqa: PLR2004


def figure(value: float | None) -> str:
    """A metric with as many digits as tell two models apart."""
    if value is None or not math.isfinite(value):
        return "\N{EN DASH}"
    if value == round(value) and abs(value) < 1e15:  # noqa: PLR2004
        return f"{value:,.0f}"
    return f"{value:,.4f}" if abs(value) < 1000 else f"{value:,.1f}"  # noqa: PLR2004


def short(value: Any) -> str:  # noqa: ANN401  # a parameter of whatever kind
    """A parameter's value in few letters."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)[:40]


def signed(value: float | None) -> str:
    """A difference, with its sign."""
    return "\N{EN DASH}" if value is None else ("+" if value > 0 else "") + figure(value)


def words(code: str) -> str:
    """A status as words: `waiting_approval` is `waiting approval`."""
    return code.replace("_", " ")


def day(value: datetime) -> str:
    """A window's edge: the day alone where it is midnight."""
    utc = value.astimezone(UTC)
    return f"{utc:%Y-%m-%d}" if (utc.hour, utc.minute, utc.second) == (0, 0, 0) else f"{utc:%Y-%m-%d %H:%M}"


def ticked(text: str) -> Markup:
    """*text*, escaped, with what stands in `backticks` as code."""
    parts = str(text).split("`")
    if len(parts) % 2 == 0:  # an odd tick: not meant as code
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if n % 2 else escape(part) for n, part in enumerate(parts)
    )


def spaced(name: str) -> str:
    """An event's type as words: `StageFinished` is `stage finished`."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", name).lower()


def told(event: Any) -> str:  # noqa: ANN401
    """What an event says, in a few words; the API has all of it."""
    body = event.body
    parts = [str(body[name]) for name in TOLD if body.get(name) not in (None, "", [], {})]
    for name, of in (("wait", "what"), ("comparison", "reason"), ("claim", "person"), ("claim", "verdict")):
        parts += [str(body[name][of])] if isinstance(body.get(name), dict) and body[name].get(of) else []
    return " · ".join(parts)[:400]


TOLD = ("stage", "outcome", "summary", "error", "message", "reason", "person", "device", "version", "submitted_by")

for _filter in (spaced, ticked, told, moment, ago, span, figure, short, signed, words, day):
    _templates.filters[_filter.__name__] = _filter
