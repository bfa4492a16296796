"""What checks took: each counts from the end of the one before it."""

import time

from quantkit.costs import Laps
from quantkit.values import CheckResult


def result(name):
    return CheckResult(name, "pass", "", {}, {}, "quantkit")


def test_a_check_takes_the_time_since_the_one_before_it_and_a_shared_measurement_is_the_firsts(monkeypatch):
    clock = iter([12.5, 12.5, 20.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    laps = Laps(10.0)
    ended = laps.end(result("integrity")) + laps.end() + laps.end(result("perplexity"), result("divergence"))
    assert [(each.check, each.seconds) for each in ended] == [("integrity", 2.5), ("perplexity", 8.0), ("divergence", 0.0)]
