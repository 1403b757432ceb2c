"""How sure shares are, and differences between them: intervals and tests, by scipy.stats."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

LEVEL = 0.95  # of intervals; tests are at 1 - LEVEL


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, of which independent trials are known (Wilson 1927).

    Args:
        successes: from 0 to `count`.
        count: at least 1.
    """
    found = stats.binomtest(successes, count).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean from which values spread normally (Student's t).

    Args:
        values: two or more that are not all equal, e.g. one for each seed.
    """
    found = stats.ttest_1samp(values, 0.0).confidence_interval(LEVEL)
    return float(found.low), float(found.high)


def mcnemar_test(a: np.ndarray, b: np.ndarray) -> tuple[int, int, float]:
    """Whether one of two methods does better on the same sketches: the exact test of McNemar.

    Only sketches on which the methods differ count. If the methods are equally good, each of them
    wins half of these, independently. Where methods have several runs, a sketch is won by the
    method with more successes on it, so that each sketch still counts once; this is the sign
    test, which for one run is McNemar's.

    Args:
        a: successes of one method on each sketch, (n,).
        b: those of the other, (n,), in the same order.

    Returns:
        The sketches that `a` wins, those that `b` wins, and the two-sided p.
    """
    wins, losses = int(np.sum(a > b)), int(np.sum(a < b))
    if wins + losses == 0:
        return 0, 0, 1.0
    return wins, losses, float(stats.binomtest(wins, wins + losses).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979).

    Rejecting those of at most 0.05 rejects any true hypothesis with probability 0.05 at most.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.maximum.accumulate(np.array(p_values)[order] * factors)
    result = np.empty(len(p_values))
    result[order] = np.minimum(corrected, 1)
    return result.tolist()
