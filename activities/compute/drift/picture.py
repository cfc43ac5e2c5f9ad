"""Evidently's HTML of a check, for a sandboxed frame."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from activities.compute.drift.judging import report, without_values
from activities.compute.drift.methods import Pair

HTML_COLUMNS = 100
UNSAFE = re.compile(r"[^\w .,:;()+*/=%-]")


def render_html(pairs: Sequence[Pair]) -> bytes:
    """Evidently's HTML of the pairs, at most 100 of them.

    Evidently writes names and values into a script: `</script>` in the data would end it, and what follows would
    run. So every character that could mean something there is replaced.
    """
    shown = [_harmless(pair) for pair in pairs[:HTML_COLUMNS] if without_values(pair) is None]
    if not shown:
        return b"<!doctype html><title>Drift</title><p>No column has values on both sides.</p>"
    names = _unique([pair.name for pair in shown])
    text: str = report(shown, names).get_html_str(as_iframe=False)
    return text.encode("utf-8", "replace")


def _harmless(pair: Pair) -> Pair:
    if pair.numeric:
        return Pair(safe(pair.name), numeric=True, reference=pair.reference, current=pair.current)
    make: Callable[[Any], str] = lambda value: safe(str(value))  # noqa: E731
    sides = [np.array([make(value) for value in side.tolist()], object) for side in (pair.reference, pair.current)]
    return Pair(safe(pair.name), numeric=False, reference=sides[0], current=sides[1])


def safe(text: str) -> str:
    """*text* without anything that HTML, a script or a template could take for its own."""
    return UNSAFE.sub("\N{MIDDLE DOT}", text)[:100] or "(empty)"


def _unique(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    made = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        made.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return made
