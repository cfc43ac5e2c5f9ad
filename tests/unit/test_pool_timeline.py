"""The drawing of who held what: nothing overlaps, nothing is outside, and time runs to the right."""

from hypothesis import given
from hypothesis import strategies as some

from api.pool.timeline import LEFT, Stretch, drawn

STRETCHES = some.lists(
    some.tuples(
        some.sampled_from(("cpu0", "cpu1", "gone")),
        some.integers(0, 1000),
        some.integers(1, 400),
        some.integers(0, 5),
    ),
    max_size=25,
)


@given(given=STRETCHES)
def test_bars_are_within_their_devices_band_and_never_on_each_other(given: list[tuple[str, int, int, int]]) -> None:
    stretches = [
        Stretch(device, token, begins, begins + length, "useful", cores, "ada", "vision", "train")
        for token, (device, begins, length, cores) in enumerate(given)
    ]

    drawing = drawn(stretches, {"cpu0": 4, "cpu1": 30}, 200, 900)

    bands = {band.device: band for band in drawing.bands}
    shown = {bar.stretch.token for bar in drawing.bars}
    assert shown == {one.token for one in stretches if one.to_ms > 200 and one.from_ms < 900}
    for bar in drawing.bars:
        band = bands[bar.stretch.device]
        assert band.y - 0.01 <= bar.y
        assert bar.y + bar.height <= band.y + band.height + 0.02
        assert bar.x >= LEFT
        assert bar.x + bar.width <= drawing.width + 0.76
        for other in drawing.bars:
            apart = (
                other is bar
                or other.stretch.to_ms <= bar.stretch.from_ms
                or bar.stretch.to_ms <= other.stretch.from_ms
                or other.y >= bar.y + bar.height - 0.02
                or bar.y >= other.y + other.height - 0.02
            )
            assert apart, (bar, other)
    assert all(band.y + band.height <= drawing.height for band in drawing.bands)


def test_ticks_are_at_round_times() -> None:
    hour = 3_600_000
    drawing = drawn([], {"cpu0": 2}, 10 * hour + 7, 16 * hour)

    assert [tick.at_ms for tick in drawing.ticks] == [11 * hour, 12 * hour, 13 * hour, 14 * hour, 15 * hour, 16 * hour]
    assert drawing.ticks[-1].x == drawing.width
