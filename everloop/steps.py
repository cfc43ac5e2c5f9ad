"""A step that a job reports, as people call it. Its values say what it is: `rounds`, `epochs` and `trees` count steps,
`most` is how many there will be at most, and of `of` there will be so many.
"""

from collections.abc import Mapping

UNITS = {"rounds": "round", "epochs": "epoch", "trees": "tree", "files": "file"}
"""A value that counts steps, and what one of them is called."""
STEP = "step"
MOST = ("most", "of")
MOST_STEPS = 10**12
"""More is no number of steps that anybody waits for."""
PART, PART_STEPS = "part", 100_000
"""A value that says which of several trainings in a job it is of, from 1, and how many steps each has to itself."""
TRAIN, VALIDATION = "train_", "validation_"
"""How a trainer names the values of its curves: `validation_binary_logloss`."""


def in_part(step: int, values: Mapping[str, float]) -> tuple[int, int]:
    """Which of several trainings in a job a step is of (0: the only one, or all of them), and its number there."""
    part = int(values.get(PART, 0))
    return (part, step - (part - 1) * PART_STEPS) if part > 0 else (0, step)


def unit_of(values: Mapping[str, float]) -> str:
    """What one step is called."""
    return next((word for name, word in UNITS.items() if name in values), STEP)


def most_of(step: int, values: Mapping[str, float]) -> int | None:
    """How many steps there will be, or None where that is not said."""
    told = next((values[name] for name in MOST if name in values), 0)
    return int(told) if step <= told <= MOST_STEPS else None


def may_stop_early(values: Mapping[str, float]) -> bool:
    """Are there validation rows that can say when to stop?"""
    return any(name.startswith(VALIDATION) for name in values)


def told(step: int, values: Mapping[str, float]) -> str:
    """`round 120 of at most 400`. A step beyond the most is counted otherwise: then it is just a step."""
    part, step = in_part(step, values)
    if part:
        return f"part {part}, {unit_of(values)} {step:,}"
    most = most_of(step, values)
    if most is None:
        beyond = any(name in values for name in MOST)
        return f"{STEP if beyond else unit_of(values)} {step:,}"
    return f"{unit_of(values)} {step:,} of {'at most ' if may_stop_early(values) else ''}{most:,}"


def count(number: int, unit: str) -> str:
    """`1 epoch`, `1,200 rounds`."""
    return f"{number:,} {unit}{'' if number == 1 else 's'}"
