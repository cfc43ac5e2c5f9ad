"""A family's parameter space as data: a search reads it without the family's library."""

from typing import Any, Literal

from everloop.strict import Strict


class Parameter(Strict):
    """One of a family's `params` that is worth a search."""

    name: str
    kind: Literal["float", "integer", "choice"]
    low: float | None = None
    high: float | None = None
    """Both inclusive; of a choice neither."""
    log: bool = False
    """Draw its logarithm."""
    choices: tuple[Any, ...] = ()
    usual: Any = None
    """What a model that is not told it does much as: a sampler learns from the defaults, too."""
    when: dict[str, tuple[Any, ...]] = {}
    """Asked only where each of these parameters, which stand before this one, has one of the values."""


class Space(Strict):
    """What a search may ask of a family. A parameter that a point leaves out has the family's default."""

    parameters: tuple[Parameter, ...]
    portfolio: tuple[dict[str, Any], ...]
    """Points to try before any sampler, the best first; the first is the family's defaults."""

    def asked(self, point: dict[str, Any]) -> tuple[Parameter, ...]:
        """The parameters that apply to *point*, in order."""
        return tuple(
            each for each in self.parameters if all(point.get(name) in values for name, values in each.when.items())
        )


def number(
    name: str, low: float, high: float, *, log: bool = False, usual: float | None = None, **when: tuple[Any, ...]
) -> Parameter:
    return Parameter(name=name, kind="float", low=low, high=high, log=log, usual=usual, when=when)


def integer(
    name: str, low: int, high: int, *, log: bool = False, usual: int | None = None, **when: tuple[Any, ...]
) -> Parameter:
    return Parameter(name=name, kind="integer", low=low, high=high, log=log, usual=usual, when=when)


def choice(name: str, *choices: Any, **when: tuple[Any, ...]) -> Parameter:  # noqa: ANN401
    return Parameter(name=name, kind="choice", choices=choices, when=when)
