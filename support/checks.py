"""Checks of numbers that come from a user, whether as a flag or as an argument of a call."""

import numbers
from typing import Any

from support.files import UserError

MAX_COUNT = 10**9  # of sketches, updates and the like
MAX_BATCH = 2**16  # sketches at a time
MAX_SEED = 2**63 - 1  # of sampling and figures
MAX_TRAINING_SEED = 2**32 - 1
MAX_LEARNING_RATE = 1000
MAX_WORKERS = 1024


def check_whole(name: str, value: Any, low: int, high: int = MAX_COUNT) -> None:
    """Raises UserError unless a value is a whole number from `low` to `high`."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise UserError(f"{name}: {value!r:.60} is not allowed; a whole number")
    _check_range(name, value, low, high)


def check_real(name: str, value: Any, low: float, high: float) -> None:
    """Raises UserError unless a value is a number from `low` to `high`."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise UserError(f"{name}: {value!r:.60} is not allowed; a number")
    _check_range(name, value, low, high)


def check_workers(workers: Any) -> None:
    """Raises UserError unless a number of workers, or None, can be meant."""
    if workers is not None:
        check_whole("workers", workers, 0, MAX_WORKERS)


def _check_range(name: str, value: Any, low: float, high: float) -> None:
    if value > high:
        raise UserError(f"{name}: {value!s:.60} is not allowed; at most {high}")
    if not value >= low:  # as of NaN
        raise UserError(f"{name}: {value!s:.60} is not allowed; at least {low}")
