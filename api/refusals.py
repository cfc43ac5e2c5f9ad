"""What the prediction server refuses to serve, for pages and lists: only it knows."""

from dataclasses import dataclass

import httpx

from api.identity import CLIENT_KEY
from everloop.settings import Settings

ANSWER_SECONDS = 1.0
HELP = "`everloop journal verify` compares what is stored with what was decided; `everloop submit` makes a new version"


@dataclass(frozen=True)
class Refusal:
    """A release that does not answer, though it is the model's."""

    project: str
    model: str
    why: str
    answers: int | None
    """The version that answers instead, if any."""

    @property
    def sentence(self) -> str:
        instead = f"version {self.answers} goes on answering" if self.answers else "no version answers"
        return f"{self.why}; {instead}"


def refusals(settings: Settings) -> dict[tuple[str, str], Refusal]:
    """By project and model. Empty where the prediction server does not answer: nobody refuses then."""
    key = settings.keys_dir / CLIENT_KEY
    try:
        headers = {"Authorization": f"Bearer {key.read_text().strip()}"}
        answer = httpx.get(f"{settings.serve_url}/status", headers=headers, timeout=ANSWER_SECONDS, trust_env=False)
        models = answer.raise_for_status().json()["models"]
    except (httpx.HTTPError, OSError, ValueError, KeyError):
        return {}
    return {
        (each["project"], each["model"]): Refusal(each["project"], each["model"], each["error"], each["version"])
        for each in models
        if each["error"]
    }
