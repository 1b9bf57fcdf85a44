"""How many epochs a curve of losses over budgets asks for: plain functions.

A budget is a number of epochs. The same validation samples are read out at every budget, so budgets
are compared sample by sample: what makes a sample hard for all of them cancels.

>>> curve = Curve([1, 2, 4, 8], [[0.9, 1.1], [0.5, 0.6], [0.4, 0.45], [0.41, 0.44]])
>>> smallest_within_one_se(curve), knee(curve), verdict(curve)
(4, 4, 'flat after 4')
"""

import math
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from onecycle import checks
from onecycle.smoothing import Array

TOL = 0.01  # of the loss: a doubling that gains less is not worth it
CLEAR = 2.0  # standard errors, more than which is no accident


class Curve:
    """What was measured for each sample at each budget.

    Args:
        budgets: epochs, K rising integers.
        values: (S, K, N) for S seeds and N validation samples, or (K, N) for one seed; of a batch
            whose samples are not known apart, its mean.
        weights: (N,), samples behind each value; None means as many behind each.
        higher_is_better: of the values, as of an accuracy.

    Attributes:
        means: (K,), over samples and seeds; nan where that is not finite.
        costs: (K,), the means, lower is better: of opposite sign where higher is better, and inf
            where they are not finite.
        best: the place of the lowest cost, the first of equals.

    Raises:
        ValueError: budgets do not rise, or shapes do not fit.

    >>> Curve([1, 2], [[0.9, 0.7], [0.6, 0.4]], weights=[1, 3]).means
    array([0.75, 0.45])
    """

    budgets: tuple[int, ...]
    values: np.ndarray[Any, Any]
    weights: Array

    def __init__(
        self, budgets: Any, values: Any, weights: Any = None, *, higher_is_better: bool = False
    ) -> None:
        self.budgets = _rising(budgets)
        self.values = _three_axes(values, len(self.budgets))
        self.weights = _weights(weights, self.values.shape[2])
        self.higher_is_better = checks.flag("higher_is_better", higher_is_better)
        self._sign = -1.0 if higher_is_better else 1.0
        with np.errstate(invalid="ignore", over="ignore"):
            means = self.seed_means.mean(axis=0)
        finite = np.isfinite(means)
        self.means = np.where(finite, means, math.nan)
        self.costs = np.where(finite, self._sign * means, math.inf)
        self.best = int(np.argmin(self.costs))

    @property
    def seed_means(self) -> Array:
        """The means of each seed, (S, K)."""
        return np.asarray(np.average(self.values, axis=2, weights=self.weights), dtype=np.float64)

    @cached_property
    def errors(self) -> Array:
        """The standard errors of the differences from the best budget, (K,); 0 for itself."""
        return np.asarray([self.difference(k, self.best)[1] for k in range(len(self.budgets))])

    def difference(self, i: int, j: int) -> tuple[float, float]:
        """Return by how much the i-th budget costs more than the j-th, and the standard error.

        The standard error is nan where a mean is not finite, or there is nothing to tell it by.

        >>> more, se = Curve([1, 2], [[0.9, 1.1, 1.0], [0.5, 0.6, 0.7]]).difference(0, 1)
        >>> round(more, 4), round(se, 4)
        (0.4, 0.0577)
        """
        if not np.isfinite(self.costs[[i, j]]).all():
            return float(self.costs[i]) - float(self.costs[j]), math.nan
        one, other = (self.values[:, k].astype(np.float64) for k in (i, j))
        paired = self._sign * (one - other)
        mean = np.average(paired.mean(axis=0), weights=self.weights)
        return float(mean), standard_error(paired, self.weights)

    def doubling(self, k: int) -> tuple[float, float]:
        """Return what the k-th budget gained on the one before, per doubling, and its SE."""
        gain, se = self.difference(k - 1, k)
        octaves = math.log2(self.budgets[k] / self.budgets[k - 1])
        return gain / octaves, se / octaves


class Guess(NamedTuple):
    """What the next doubling may bring.

    >>> Guess(epochs=16, value=0.3, low=0.25, high=0.35).value
    0.3
    """

    epochs: int
    value: float
    low: float
    high: float


def standard_error(differences: Any, weights: Any = None) -> float:
    """Return the standard error of the mean of paired differences.

    Args:
        differences: (S, N), or (N,) of one seed, in any unit.
        weights: (N,), samples behind each difference.

    With d_i the difference of sample i, averaged over seeds, and d their mean, the variance is

        n/(n-1) * sum(w_i^2 (d_i - d)^2) / sum(w_i)^2 + var(means of the seeds) / S

    with n weights above 0. The first term is the paired bootstrap over samples in the limit of
    many resamples, which for a mean needs no resampling. The second is there for two seeds or
    more; what seeds and samples have to do with each other is in both, which errs on the wide side.

    Returns:
        Its root, in the unit of the differences; nan for one difference, which tells nothing.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 5; Owen 2007,
    "The pigeonhole bootstrap", for rows and columns that are both drawn.

    >>> round(standard_error([1.0, 2.0, 3.0, 6.0]), 2)  # np.std([1, 2, 3, 6], ddof=1) / sqrt(4)
    1.08
    """
    d = np.atleast_2d(np.asarray(differences, dtype=np.float64))
    w = _weights(weights, d.shape[1])
    seeds, n = len(d), np.count_nonzero(w)
    samples = d.mean(axis=0)
    away = w * (samples - np.average(samples, weights=w))
    parts = [n / (n - 1) * float(away @ away) / float(w.sum()) ** 2] if n > 1 else []
    if seeds > 1:
        parts.append(float(np.average(d, axis=1, weights=w).var(ddof=1)) / seeds)
    return math.sqrt(sum(parts)) if parts else math.nan


def smallest_within_one_se(curve: Curve) -> int:
    """Return the smallest budget that is within one standard error of the best one.

    The standard error is that of the paired difference between the two. The lowest of several
    noisy values is too low, and more epochs than are needed cost time; the rule answers to both.

    Source: Breiman et al. 1984, "Classification and Regression Trees", section 3.4.3.

    >>> smallest_within_one_se(Curve([1, 2, 4], [[0.9, 1.1], [0.4, 0.6], [0.3, 0.68]]))
    2
    """
    return next(
        budget
        for k, budget in enumerate(curve.budgets)
        if not _clear(*curve.difference(k, curve.best), times=1.0)
    )


def smallest_reaching(curve: Curve, target: float) -> int | None:
    """Return the smallest budget whose mean is at least as good as `target`; None where none is.

    >>> smallest_reaching(Curve([1, 2], [[0.8], [0.9]], higher_is_better=True), target=0.85)
    2
    """
    at_most = -target if curve.higher_is_better else target
    return next((b for b, c in zip(curve.budgets, curve.costs, strict=True) if c <= at_most), None)


def gains(curve: Curve) -> tuple[Array, Array]:
    """Return what each budget gained on the one before, and the standard errors; both (K-1,).

    Both are per doubling and in units of the mean before: 0.03 is 3 % of the loss. The noise of
    that unit is left out, so that a gain is as many standard errors as the difference is.

    >>> gains(Curve([1, 2, 4], [[1.0], [0.5], [0.45]]))[0].round(3)
    array([0.5, 0.1])
    """
    pairs = [curve.doubling(k) for k in range(1, len(curve.budgets))]
    units = [abs(float(mean)) for mean in curve.means[:-1]]
    parts = [[_share(part, unit) for part in pair] for pair, unit in zip(pairs, units, strict=True)]
    gain, se = np.reshape(np.asarray(parts, dtype=np.float64), (-1, 2)).T
    return gain, se


def knee(curve: Curve, tol: float = TOL) -> int | None:
    """Return the smallest budget whose doubling gains less than `tol`; None if all gain more.

    >>> knee(Curve([1, 2, 4], [[1.0], [0.5], [0.499]]))
    2
    """
    pairs = zip(curve.budgets, gains(curve)[0], strict=False)
    return next((budget for budget, gain in pairs if gain < tol), None)


def extrapolate(curve: Curve) -> Guess | None:
    """Return a guess at twice the largest budget, if the last two doublings were clear gains.

    The gains go on shrinking as they did: after g1 and g2 comes g2 * min(g2 / g1, 1). The band is
    between as much as g2 again and nothing, one standard error of g2 wider on both sides. It knows
    nothing of overfitting, which no falling curve shows before it comes; hence the one doubling.

    Returns:
        In units of the values; None unless both gains are above two standard errors.

    >>> round(extrapolate(Curve([1, 2, 4], [[0.9, 1.1], [0.5, 0.7], [0.3, 0.5]])).value, 2)
    0.3
    """
    if len(curve.budgets) < 3:
        return None
    last = len(curve.budgets) - 1
    (first, first_se), (gain, se) = curve.doubling(last - 1), curve.doubling(last)
    # Not `_clear`: without a standard error there is no guess.
    if not (first > CLEAR * first_se and gain > CLEAR * se):
        return None
    cost, sign = float(curve.costs[-1]), -1.0 if curve.higher_is_better else 1.0
    low, high = sorted(sign * end for end in (cost - gain - se, cost + se))
    value = sign * (cost - gain * min(gain / first, 1.0))
    return Guess(2 * curve.budgets[-1], value, low, high)


def verdict(curve: Curve, tol: float = TOL) -> str:
    """Return in words where the curve goes.

    It overfits if the largest budget is worse than the best by more than two standard errors; it
    is still improving if the last doubling gained more than that and more than `tol`; else it is
    flat, unless the largest budget is the one to take.

    >>> verdict(Curve([1, 2], [[0.9, 1.1], [0.5, 0.6]]))
    'still improving at 2: the last doubling gained 45.0 % ± 5.0; try 4'
    >>> verdict(Curve([1, 2], [[0.5, 0.6], [0.9, 1.1]]))
    'overfits after 1: use 1, or regularise more'
    """
    last, chosen = curve.budgets[-1], smallest_within_one_se(curve)
    finite = [b for b, mean in zip(curve.budgets, curve.means, strict=True) if math.isfinite(mean)]
    if not finite:
        return "diverged at every budget: use a lower learning rate"
    if finite[-1] < last:
        return f"diverged after {finite[-1]}: use {chosen}, or a lower learning rate"
    if len(curve.budgets) == 1:
        return f"only {last} was tried: try {2 * last}"
    gain, se = (float(each[-1]) for each in gains(curve))
    if math.isnan(gain):
        return f"diverged at {curve.budgets[-2]}: use {chosen}, or a lower learning rate"
    gained = f"the last doubling gained {_percent(gain, se)}"
    if _clear(*curve.difference(-1, curve.best)):
        best = curve.budgets[curve.best]
        near = "" if chosen == best else f", which is within one standard error of {best}"
        return f"overfits after {best}: use {chosen}{near}, or regularise more"
    if _clear(gain, se) and gain > tol:
        return f"still improving at {last}: {gained}; try {2 * last}"
    if chosen < last:
        return f"flat after {chosen}"
    if _clear(gain, se):
        return f"levels off at {last}: {gained}"
    return f"unclear at {last}: {gained}; more seeds or validation samples would tell"


def _clear(more: float, se: float, times: float = CLEAR) -> bool:
    """Tell whether a difference is above its noise; any is where the noise is not known."""
    return more > times * (0.0 if math.isnan(se) else se)


def _percent(gain: float, se: float) -> str:
    """A relative gain in words."""
    return f"{100 * gain:.1f} %" + ("" if math.isnan(se) else f" ± {100 * se:.1f}")


def _share(part: float, unit: float) -> float:
    """A part of a unit that may be 0, of which nothing is 0 and all else infinite."""
    return part / unit if unit else math.copysign(math.inf, part) if part else 0.0


def _rising(budgets: Any) -> tuple[int, ...]:
    """Check the budgets."""
    whole = tuple(
        checks.integer("budgets", budget) for budget in checks.several("budgets", budgets)
    )
    if not whole or any(a >= b for a, b in pairwise(whole)):
        raise ValueError(f"budgets must be rising numbers of epochs, got {budgets!r}")
    return whole


def _three_axes(values: Any, budgets: int) -> np.ndarray[Any, Any]:
    """Check the values; one seed may come without its axis."""
    array = np.asarray(values)
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[1] != budgets or 0 in array.shape:
        raise ValueError(
            f"values must be (seeds, {budgets} budgets, samples), got the shape {np.shape(values)}"
        )
    return array


def _weights(weights: Any, n: int) -> Array:
    """Check the weights; none is one for each."""
    w = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (n,) or not (np.isfinite(w) & (w >= 0)).all() or not w.any():
        raise ValueError(
            f"weights must be {n} numbers, none below 0 and one above, got {weights!r}"
        )
    return w
