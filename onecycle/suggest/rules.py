"""The rules that users of other libraries know, on a smoothed curve and in log10(lr)."""

import math
from typing import Any

import numpy as np

from onecycle.suggest.descent import Descent, descent_of, finite_prefix, rise, widths
from onecycle.suggest.sweep import GIVE_BACK, NAN

SLIDE = (1.2, 0.1)  # decades, share of the descent


def valley(lrs: Any, losses: Any) -> float:
    """Return the middle, in log10(lr), of the longest stretch over which the loss falls.

    The idea is that of fastai's rule of this name, on a smoothed curve; nan where nothing falls.
    """
    descent = _any_descent(lrs, losses)
    if descent is None:
        return NAN
    falls = np.concatenate([[False], np.diff(descent.curve) < 0, [False]])
    first, last = (np.flatnonzero(falls[1:] & ~falls[:-1]), np.flatnonzero(falls[:-1] & ~falls[1:]))
    if not len(first):
        return NAN
    longest = int(np.argmax(descent.x[last] - descent.x[first]))
    return float(10.0 ** ((descent.x[first[longest]] + descent.x[last[longest]]) / 2))


def slide(lrs: Any, losses: Any) -> float:
    """Return the left end of the last interval, sliding down from the divergence, that bends.

    An interval of 1.2 decades slides to the left for as long as the slopes at its ends differ by
    more than a tenth of the descent for each decade. The idea is the interval slide rule of
    fastai's `slide`, in units of log10(lr) and of the descent, so that neither the number of steps
    nor the scale of the loss matters; nan where nothing falls.
    """
    descent = _any_descent(lrs, losses)
    if descent is None:
        return NAN
    decades, share = SLIDE
    slope = np.gradient(descent.curve, descent.x)
    end = descent.lost(GIVE_BACK)
    at = descent.x[-1] if end is None else math.log10(end)
    for right in descent.x[descent.x <= at][::-1]:
        ends = np.interp([right - decades, right], descent.x, slope)
        if abs(ends[1] - ends[0]) <= share * descent.drop:
            break
        at = right
    return float(10.0 ** max(at - decades, float(descent.x[0])))


def steep(lrs: Any, losses: Any) -> float:
    """Return the learning rate where the loss falls fastest for each decade; nan if it never falls.

    >>> lrs = np.logspace(-6, 0, 100)
    >>> 5e-4 < steep(lrs, 2.3 - 2 / (1 + 1e-3 / lrs)) < 2e-3
    True
    """
    descent = _any_descent(lrs, losses)
    return NAN if descent is None else descent.steepest


def minimum(lrs: Any, losses: Any) -> float:
    """Return a tenth of the learning rate with the lowest loss; nan where the loss never falls.

    The tenth is the old rule of thumb, and what fastai's rule of this name returns. It was made for
    the lag of a moving average, which the smoothing here does not have.
    """
    descent = _any_descent(lrs, losses)
    return NAN if descent is None else descent.minimum / 10


def _any_descent(lrs: Any, losses: Any) -> Descent | None:
    """Return the descent of a curve, however faint; None where there is none."""
    x, y = finite_prefix(lrs, losses)
    if len(y) < 3 or not rise(x):
        return None
    descent = descent_of(x, y, widths(x)[0])
    return descent if descent.drop > 1e-6 * abs(descent.level) else None
