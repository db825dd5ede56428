"""How long steps take."""

import pytest

from experiments import laps
from experiments.laps import Laps


def test_times_of_steps(monkeypatch):
    times = iter([100.0, 105.0, 106.0, 108.0, 208.0, 211.0, 212.0])
    monkeypatch.setattr(laps.time, "perf_counter", lambda: next(times))
    watch = Laps(10)
    assert watch.first is watch.seconds_per_step is None
    watch.mark(11)  # 105: five seconds with the compilation
    watch.mark(13)  # 106: half a second a step
    with watch.paused():  # 108 to 208
        pass
    watch.mark(16)  # 211: five seconds but for the pause
    assert watch.first == 5
    assert watch.seconds_per_step == pytest.approx((1 / 2 + 5 / 3) / 2)
    assert watch.seconds == 112  # with the pause


def test_laps_that_are_not_alike_have_a_mean(monkeypatch):
    times = iter([0.0, 5.0, 25.0, 45.0, 75.0])
    monkeypatch.setattr(laps.time, "perf_counter", lambda: next(times))
    watch = Laps(0, alike=False)
    watch.mark(1)
    watch.mark(21)  # perhaps with a compilation, but there is no other
    assert watch.seconds_per_step == pytest.approx(20 / 20)
    watch.mark(41)
    watch.mark(61)  # this one had the penalty
    assert watch.seconds_per_step == pytest.approx(50 / 40)
