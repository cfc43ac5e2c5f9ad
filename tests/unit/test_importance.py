"""What a parameter made of the objective is told from the trials: a planted effect is found, noise is none."""

import random

from api.search.importance import importance


def trials(count, loss, seed=0):
    draw = random.Random(seed)
    points = [
        {"rate": 10 ** draw.uniform(-3, 0), "leaves": draw.randint(4, 256), "extra": draw.random() < 0.5}
        for _ in range(count)
    ]
    return [(point, loss(point, draw)) for point in points]


def test_what_was_planted_comes_first_and_what_does_nothing_is_near_zero():
    found = importance(trials(120, lambda p, draw: abs(p["rate"] - 0.1) + 0.02 * p["extra"] + draw.gauss(0, 0.005)))

    shares = {told.name: told.share for told in found}

    assert found[0].name == "rate"
    assert shares["rate"] > 0.7
    assert shares["leaves"] < 0.1
    low, high = map(float, next(told.best for told in found if told.name == "rate").split(" to "))
    assert low <= 0.15 and high >= 0.05  # about where it was planted


def test_of_noise_little_is_told():
    for seed in range(5):
        found = importance(trials(60, lambda _, draw: draw.gauss(0, 1), seed))
        assert max(told.share for told in found) < 0.3


def test_a_trial_that_went_astray_does_not_speak_for_all():
    points = trials(60, lambda p, _: 0.3 if p["extra"] else 0.5)
    points[0] = (points[0][0], 1e9)
    points[1] = (points[1][0], float("nan"))

    assert importance(points)[0].name == "extra"
    assert importance(points)[0].best == "True"


def test_few_trials_and_a_parameter_with_one_value_say_nothing():
    assert importance(trials(9, lambda p, _: p["rate"])) == []
    assert importance([({"rate": 0.1}, float(n)) for n in range(30)]) == []
    only = [({"rate": n / 30} | ({"depth": n} if n < 5 else {}), float(n)) for n in range(30)]
    assert [told.name for told in importance(only)] == ["rate"]
