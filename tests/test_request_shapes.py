"""Generated requests of a day, of several priorities, and of lengths by Zipf's law."""

from __future__ import annotations

import math

import numpy as np
from request_support import N, kolmogorov, within

from tokenfab.workloads.requests import parse_requests
from tokenfab.workloads.requests.draws import Draws
from tokenfab.workloads.requests.lengths import distribution


def test_a_swinging_rate_rises_and_falls_in_straight_lines():
    """Share of the arrivals before t of a period of 100 s: low t + (1 − low) t² / 50, in hundredths, until noon."""
    low, n = 0.2, N
    log = parse_requests(f"swing:rate=5,low={low},period=100,n={n}", seed=3)
    within(log.rate, 5, 5 / math.sqrt(n))

    def share(t):
        up = low * np.minimum(t, 100 - t) + (1 - low) * np.minimum(t, 100 - t) ** 2 / 50
        return np.where(t <= 50, up, 100 - up) / 100

    assert kolmogorov(log.arrival_s[log.arrival_s < 100 * (log.arrival_s[-1] // 100)] % 100, share) < 2.2
    even = parse_requests("swing:rate=5,low=1,period=10,n=50", seed=3)
    np.testing.assert_allclose(even.arrival_s, parse_requests("poisson:rate=5,n=50", seed=3).arrival_s, rtol=1e-12)
    assert np.isfinite(parse_requests("swing:rate=5,low=0,period=10,n=50", seed=3).arrival_s).all()


def test_priorities_are_drawn_apart_from_all_else():
    log = parse_requests(f"poisson:rate=2,n={N},urgent=0.1,background=0.5", seed=3)
    assert log.classes == ("normal", "urgent", "background")
    for k, (priority, part) in enumerate(((0, 0.4), (-1, 0.1), (1, 0.5))):
        assert set(log.priority[log.klass == k].tolist()) == {priority}
        within((log.klass == k).mean(), part, math.sqrt(part * (1 - part) / N))
    plain = parse_requests(f"poisson:rate=2,n={N}", seed=3)
    np.testing.assert_array_equal(log.arrival_s, plain.arrival_s)
    assert set(plain.priority.tolist()) == {0}
    whole = parse_requests("gamma:rate=2,cv=2,n=9,urgent=1", seed=3)
    assert (whole.classes, set(whole.klass.tolist()), set(whole.priority.tolist())) == (("urgent",), {0}, {-1})


def test_zipf_lengths_follow_the_law_and_its_mean():
    """Ranks 1 … 4 with exponent 1: shares 12/25, 6/25, 4/25, 3/25, a mean rank of 48/25; × 25/48 × 480 = 250 k."""
    drawn = distribution("prompt", "zipf(480;1;4;900)").tokens(Draws(5, "z"), N)
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == [250, 500, 750, 900]  # the fourth, 1000, is cut
    for count, twentyfifths in zip(counts, (12, 6, 4, 3), strict=True):
        part = twentyfifths / 25
        within(count / N, part, math.sqrt(part * (1 - part) / N))
