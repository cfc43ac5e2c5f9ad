"""What this process has answered, in the text format of Prometheus."""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field

from api.serve.fleet import StatusView
from api.serve.proof import Name

BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Seconds."""
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
HELP = {
    "everloop_predict_requests_total": ("counter", "Predict requests that were answered, by HTTP status."),
    "everloop_predict_seconds": ("histogram", "From a predict request's headers to its answer."),
    "everloop_served_version": ("gauge", "The version that answers for a model."),
    "everloop_served_release": ("gauge", "The release that answers for a model."),
    "everloop_release_refused": ("gauge", "1 where the latest release of a model is not served."),
}


Samples = dict[str, list[str]]
"""Lines by the name of what they measure."""


@dataclass
class Measures:
    """Counts of one process. Only its event loop writes them."""

    requests: dict[tuple[str, str, int], int] = field(default_factory=dict)
    """By project, model and status; of a model that is not served: without its name, which strangers make up."""
    seconds: dict[Name, list[float]] = field(default_factory=dict)
    """Of each model: a count for each bound and one for what is slower, then the sum."""

    def answered(self, name: Name, status: int, seconds: float) -> None:
        """Note one answer."""
        key = (*name, status)
        self.requests[key] = self.requests.get(key, 0) + 1
        counts = self.seconds.get(name)
        if counts is None:
            counts = self.seconds[name] = [0.0] * (len(BOUNDS) + 2)
        counts[bisect_left(BOUNDS, seconds)] += 1
        counts[-1] += seconds

    def samples(self, process: int) -> Samples:
        """Every count, as lines that name the *process*."""
        found: Samples = {}
        for (project, model, status), count in sorted(self.requests.items()):
            labels = _labels(project=project, model=model, status=str(status), process=str(process))
            found.setdefault("everloop_predict_requests_total", []).append(f"{labels} {count}")
        for (project, model), counts in sorted(self.seconds.items()):
            total = 0
            lines = found.setdefault("everloop_predict_seconds", [])
            for bound, slower in zip((*map(str, BOUNDS), "+Inf"), counts[:-1], strict=True):
                total += int(slower)
                labels = _labels(project=project, model=model, process=str(process), le=bound)
                lines.append(f"_bucket{labels} {total}")
            labels = _labels(project=project, model=model, process=str(process))
            lines += [f"_sum{labels} {counts[-1]!r}", f"_count{labels} {total}"]
        return found


def served(status: StatusView, process: int) -> Samples:
    """What answers for each model, and whether its latest release is refused."""
    found: Samples = {}
    for each in status.models:
        labels = _labels(project=each.project, model=each.model, process=str(process))
        if each.version is not None:
            found.setdefault("everloop_served_version", []).append(f"{labels} {each.version}")
            found.setdefault("everloop_served_release", []).append(f"{labels} {each.release_seq}")
        found.setdefault("everloop_release_refused", []).append(f"{labels} {int(bool(each.error))}")
    return found


def text(every: Iterable[Samples]) -> str:
    """The samples of several processes as one document."""
    parts = list(every)
    lines = []
    for name, (kind, help_) in HELP.items():
        lines += [f"# HELP {name} {help_}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{line}" for part in parts for line in part.get(name, ())]
    return "\n".join(lines) + "\n"


def _labels(**values: str) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in values.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
