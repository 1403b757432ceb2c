"""Intervals and tests: against cases worked out by hand, and data of which the truth is known."""

import math

import numpy as np
import pytest

from support.significance import holm, mcnemar_test, t_interval, wilson_interval


@pytest.mark.parametrize(("successes", "count"), [(0, 1), (0, 20), (7, 20), (20, 20), (450, 500)])
def test_wilson_is_its_formula(successes, count):
    """Centre and half width as Wilson gives them; never outside of 0 to 1."""
    z = 1.959963984540054
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    expected = (max(0, centre - half), min(1, centre + half))
    assert wilson_interval(successes, count) == pytest.approx(expected, abs=1e-12)


def test_wilson_holds_the_truth_as_often_as_it_says():
    """Of 4,000 simulated samples about 95 % of the intervals hold the true share."""
    rng = np.random.default_rng(1)
    draws = rng.binomial(60, 0.3, 4000)
    intervals = {k: wilson_interval(k, 60) for k in np.unique(draws).tolist()}
    held = np.mean([intervals[k][0] <= 0.3 <= intervals[k][1] for k in draws.tolist()])
    # The exact coverage at this size and share, by summing the binomial distribution, is 0.941;
    # the simulation's standard error is 0.0037.
    assert held == pytest.approx(0.941, abs=0.015)


def test_t_interval_by_hand():
    """Of 0.4 and 0.6: t(0.975, 1) = 12.7062 standard errors of 0.1."""
    assert t_interval([0.4, 0.6]) == pytest.approx((0.5 - 1.27062047, 0.5 + 1.27062047), abs=1e-8)
    # Of three values t(0.975, 2) = 4.30265273.
    half = 4.30265273 * np.std([1, 2, 6], ddof=1) / math.sqrt(3)
    assert t_interval([1, 2, 6]) == pytest.approx((3 - half, 3 + half), abs=1e-7)


def test_mcnemar_by_hand():
    """Of 10 differing sketches one method wins 9: 2 (1 + 10) / 2**10. Equal ones don't count."""
    a = np.array([1] * 9 + [0] + [1] * 50 + [0] * 40)
    b = np.array([0] * 9 + [1] + [1] * 50 + [0] * 40)
    assert mcnemar_test(a, b) == (9, 1, pytest.approx(22 / 1024))
    assert mcnemar_test(b, a) == (1, 9, pytest.approx(22 / 1024))
    assert mcnemar_test(a, a) == (0, 0, 1.0)
    assert mcnemar_test(np.array([1, 0]), np.array([0, 1])) == (1, 1, 1.0)


def test_a_sketch_counts_once_whatever_the_runs():
    """Ten equal runs of two methods are no more evidence than one."""
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 2, 300), rng.integers(0, 2, 300)
    assert mcnemar_test(a * 10, b * 10) == mcnemar_test(a, b)


def test_holm_by_hand():
    """The smallest p counts times three, the next twice, none less than one before it."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.4]) == pytest.approx([0.8, 0.8])
    assert holm([0.9, 0.9, 0.9]) == [1.0, 1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_equal_methods_are_rarely_told_apart_and_unequal_ones_nearly_always():
    """Three equal methods and a better one, simulated: what the table's marks promise."""
    rng = np.random.default_rng(3)
    false, found, trials = 0, 0, 300
    for _ in range(trials):
        easy = rng.random(400)  # how easy each sketch is, the same for all methods
        outcomes = [rng.random(400) < easy for _ in range(3)]
        better = rng.random(400) < np.minimum(1, easy + 0.2)
        equal = [(0, 1), (0, 2), (1, 2)]
        p_values = [mcnemar_test(outcomes[i], outcomes[j])[2] for i, j in equal]
        p_values += [mcnemar_test(better, one)[2] for one in outcomes]
        corrected = holm(p_values)
        false += any(p <= 0.05 for p in corrected[:3])
        found += all(p <= 0.05 for p in corrected[3:])
    # A wrong mark in at most 5 % of the tables (standard error 1.3 %); the exact test has less.
    assert false / trials <= 0.05 + 3 * 0.013
    assert found / trials >= 0.95
