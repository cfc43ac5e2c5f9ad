"""The bench of serving says which goals are met."""

import pytest

from bench.serving import Server, told


def measured(name: str, per_second: float) -> Server:
    return Server(name, "http://127.0.0.1:1/", "{}", per_second=[per_second], p50_ms=[1.0])


def test_a_goal_beside_a_peer_that_was_left_out_is_not_met(capsys: pytest.CaptureFixture[str]) -> None:
    floor, ours, mlflow = measured("floor", 1000), measured("everloop", 900), measured("mlflow", 100)

    assert told([ours, floor, mlflow], [1.0] * 100, 0)
    assert not told([ours, floor], [1.0] * 100, 0)
    assert "everloop_over_mlflow: not measured" in capsys.readouterr().out
