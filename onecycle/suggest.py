"""What an LR sweep says: lag-free smoothing, landmarks, one suggestion with a band.

Everything is computed in log10 of the learning rate, on the finite prefix of the curve. The whole
curve is there when it is judged, so the smoothing looks both ways: a moving average would drag the
minimum to the right.

The constants were chosen on one half of the tasks of `tests/benchmarks/lr_find_regret.py`; its
`RESULTS.md` has the regret of every rule on the other half.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onecycle.smoothing import Array, local_lines

WIDTHS = (0.15, 0.3)  # decades, deviation of the kernel; the wider one for a noisy curve
BEGUN, MOSTLY, SETTLED = 0.1, 0.75, 0.95  # shares of the descent
GIVE_BACK = 0.25  # share of the descent that is lost again where the curve counts as diverging
RETURNED = 0.9  # share that is lost where a descent is over, whatever comes after it
EDGE = 1.5  # how far below the divergence a rate must stay
FAINT, CLEAR = 12.0, 24.0  # descent over the noise that is left in the smoothed curve
CLOSE = (10.0, 4.0)  # how far a closer look goes below the onset and beyond the divergence
MIN_POINTS = 10
DENSE = 6.0  # points in a decade
SPARSE = 1.5  # distances between points, least deviation of the kernel
SLIDE = (1.2, 0.1)  # decades, share of the descent
APART = 0.3  # decades
RISEN = 0.95  # share of the rise of a score
LINEAR_WIDTH = 0.06  # of the range, deviation of the kernel
NO_DESCENT = (
    "no descent: already trained, frozen, or the range is too small; keep the last max_lr or use "
    "method='race'"
)
LANDMARKS = ("onset", "steepest", "settled", "minimum", "divergence")
NAN = float("nan")


@dataclass(frozen=True)
class Suggestion:
    """What a curve says; every learning rate is nan where it does not show it."""

    lr: float
    """The learning rate to take."""
    band: tuple[float, float]
    """Learning rates that should do as well."""
    confidence: str
    """"high", "low" or "none"."""
    reason: str
    """Why the confidence is not high, in a sentence."""
    points: dict[str, float] = field(default_factory=dict)
    """The learning rates of the landmarks, by name."""
    width: float = WIDTHS[0]
    """The width of the kernel under which the curve was judged, in decades."""


@dataclass(frozen=True)
class Descent:
    """The first descent of a smoothed curve: over log10(lr) from `level` down by `drop`."""

    x: Array
    curve: Array
    bottom: int
    level: float
    drop: float

    def done(self, share: float) -> float:
        """Return the learning rate from which on `share` of the descent is done."""
        threshold = self.level - share * self.drop
        above = np.flatnonzero(self.curve[: self.bottom + 1] > threshold)
        return self._crossing(int(above[-1]) + 1 if len(above) else 0, threshold)

    def lost(self, share: float) -> float | None:
        """Return the learning rate where `share` of it is lost again; None where it never is."""
        threshold = self.level - (1.0 - share) * self.drop
        above = np.flatnonzero(self.curve[self.bottom :] > threshold)
        return self._crossing(self.bottom + int(above[0]), threshold) if len(above) else None

    @property
    def steepest(self) -> float:
        """The learning rate where the loss falls fastest, once the descent has begun."""
        # Only the last descent counts: ripples far to the left may be steeper.
        before = np.flatnonzero(self.curve[: self.bottom] > self.level - BEGUN * self.drop)
        first = int(before[-1]) if len(before) else 0
        slope = np.gradient(self.curve, self.x)
        return float(10.0 ** self.x[first + int(np.argmin(slope[first : self.bottom + 1]))])

    @property
    def minimum(self) -> float:
        """The learning rate with the lowest loss."""
        return float(10.0 ** self.x[self.bottom])

    def _crossing(self, i: int, threshold: float) -> float:
        """Return where the curve goes through `threshold` between points i - 1 and i."""
        if i == 0:
            return float(10.0 ** self.x[0])
        before, after = self.curve[i - 1], self.curve[i]
        share = (threshold - before) / (after - before)
        return float(10.0 ** (self.x[i - 1] + share * (self.x[i] - self.x[i - 1])))


def smooth(lrs: Array, losses: Array, width: float = WIDTHS[0]) -> Array:
    """Return `losses` without their noise, by local lines in log10(lr).

    >>> lrs = np.logspace(-5, 0, 50)
    >>> bool(np.allclose(smooth(lrs, 3.0 - np.log10(lrs)), 3.0 - np.log10(lrs)))
    True
    """
    return local_lines(np.log10(lrs), losses, width)


def finite_prefix(lrs: Any, losses: Any) -> tuple[Array, Array]:
    """Return both as arrays, cut before the first loss that is not finite."""
    x, y = np.asarray(lrs, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(y))
    n = bad[0] if len(bad) else len(y)
    return x[:n], y[:n]


def pooled(sweeps: Sequence[Any]) -> Array:
    """Return the median loss of several sweeps at each learning rate, as far as the longest goes.

    A sweep that has ended counts as infinite, so that the median is finite while more than half of
    them go on.

    >>> pooled([[3.0, 2.0, 9.0], [3.2, 1.8], [2.8, 1.9, 5.0]]).tolist()
    [3.0, 1.9, 9.0]
    """
    rows = np.full((len(sweeps), max(map(len, sweeps))), np.inf)
    for row, losses in zip(rows, sweeps, strict=True):
        row[: len(losses)] = np.where(np.isfinite(losses), losses, np.inf)
    # Between a number and infinity there is no mean.
    middle = np.sort(rows, axis=0)
    high, low = middle[len(rows) // 2], middle[(len(rows) - 1) // 2]
    return np.where(np.isfinite(high), (low + high) / 2, np.inf)


def suggest(lrs: Any, losses: Any) -> Suggestion:
    """Return the suggestion of a sweep; it never raises on a short, flat or ragged curve.

    lr = sqrt(steepest divergence), at most divergence / 1.5: the geometric mean of where the loss
    falls fastest and where a quarter of the descent is lost again. The band goes from where three
    quarters of the descent are done, or lr where that is lower, to divergence / 1.5.

    Args:
        lrs: rising learning rates.
        losses: the training loss at each; cut at the first that is not finite.

    >>> lrs = np.logspace(-6, 1, 100)
    >>> losses = 2.3 - 2 / (1 + (1e-3 / lrs) ** 2) + np.minimum(lrs, 5) ** 2
    >>> 1e-3 < suggest(lrs, losses).lr < 0.5
    True
    """
    x, y = finite_prefix(lrs, losses)
    ended = len(y) < len(np.asarray(losses))
    if len(y) < MIN_POINTS:
        return _nothing(f"only {len(y)} finite losses, {MIN_POINTS} are needed: lower start_lr")
    if not _rise(x):
        return _nothing("the learning rates do not rise")
    seen = _seen(x, y, FAINT)
    if seen is not None:
        return _found(*seen, ended=ended)
    if ended:
        reason = f"the loss stops being finite at {x[-1]:.1e} without having fallen: check the data"
        return _nothing(reason)
    return _nothing(NO_DESCENT)


def bracket(lrs: Any, losses: Any) -> tuple[float, float] | None:
    """Return where a sweep is worth a closer look; None where not even a faint descent is seen.

    From a tenth of where the descent begins, but not below the sweep, to four times the divergence.
    """
    x, y = finite_prefix(lrs, losses)
    seen = _seen(x, y, FAINT / 2) if len(y) >= MIN_POINTS and _rise(x) else None
    if seen is None:
        return None
    descent = seen[0]
    end = descent.lost(GIVE_BACK)
    low = max(descent.done(BEGUN) / CLOSE[0], float(x[0]))
    return low, CLOSE[1] * (float(x[-1]) if end is None else end)


def agreed(judged: Suggestion, sweeps: Sequence[Suggestion]) -> Suggestion:
    """Return what the pooled curve says, `judged`, within what each of the sweeps allows.

    The band ends at the lowest end among the sweeps; the confidence is low where their suggestions
    lie more than 0.3 decades apart.
    """
    found = [one for one in sweeps if math.isfinite(one.lr)]
    if math.isnan(judged.lr) or not found:
        return judged
    high = min(judged.band[1], *(one.band[1] for one in found))
    apart = math.log10(max(one.lr for one in found) / min(one.lr for one in found))
    reasons = [judged.reason] if judged.reason else []
    if apart > APART:
        reasons.append(f"the sweeps lie {apart:.1f} decades apart: raise num_it or n_sweeps")
    return replace(
        judged,
        lr=min(judged.lr, high),
        band=(min(judged.band[0], high), high),
        confidence="low" if reasons else "high",
        reason="; ".join(reasons),
    )


def race(rounds: Sequence[Mapping[float, float]], start: float) -> Suggestion:
    """Return what a race says: the learning rate with the lowest loss in its last round.

    The band holds the rates of the second round, or the winner alone. The confidence is low where
    the winner is the lowest or highest rate of all, or where rounds differ on who leads; there is
    none where no loss is below `start`.

    Args:
        rounds: for each round the validation loss by learning rate.
        start: the validation loss before training.

    >>> race([{0.01: 1.2, 0.1: 0.9, 1.0: 2.3}, {0.1: 0.5, 0.01: 0.6}], start=2.3).band
    (0.01, 0.1)
    """
    losses = [
        {lr: loss if math.isfinite(loss) else math.inf for lr, loss in entries.items()}
        for entries in rounds
    ]
    leaders = [min(entries, key=lambda lr: entries[lr]) for entries in losses]
    winner = leaders[-1]
    best = losses[-1][winner]
    if not best < start:
        said = f"no rate lowered the validation loss, {start:.3g} before: keep the model as it is"
        return Suggestion(NAN, (NAN, NAN), "none", said)
    everyone, second = sorted(losses[0]), sorted(losses[1]) if len(losses) > 1 else [winner]
    reasons = []
    if winner in (everyone[0], everyone[-1]) and len(everyone) > 1:
        reasons.append("the winner is at the edge of what was tried: widen start_lr and end_lr")
    if len(set(leaders)) > 1:
        reasons.append("the rounds differ on who leads: raise num_it")
    return Suggestion(
        winner, (second[0], second[-1]), "low" if reasons else "high", "; ".join(reasons)
    )


def range_test(lrs: Any, scores: Any) -> Suggestion:
    """Return what a range test says: the learning rate where 95 % of the rise are done.

    The band goes from three quarters of the rise to where the score has fallen again by 5 % of it.

    Args:
        lrs: learning rates that rise linearly.
        scores: the higher, the better; cut at the first that is not finite.

    Source: Smith 2017 (arXiv 1506.01186), section 3.3, takes the rate where the accuracy slows,
        becomes ragged or falls; the 95 % are ours.
    """
    x, y = finite_prefix(lrs, scores)
    if len(y) < MIN_POINTS:
        return _nothing(f"only {len(y)} finite scores, {MIN_POINTS} are needed: raise num_it")
    curve = smooth_linear(x, y)
    residuals = np.abs(y - curve)
    top = int(np.argmax(curve))
    first = float(curve[: top + 1].min())
    rise = float(curve[top]) - first
    if rise <= FAINT / 2 * 1.4826 * float(np.median(residuals)) or not top:
        return _nothing("the score does not rise above its noise: raise num_it, or change end_lr")

    def reached(share: float) -> int:
        return int(np.argmax(curve >= first + share * rise))

    fallen = np.flatnonzero(curve[top:] < curve[top] - (1.0 - RISEN) * rise)
    high = float(x[top + fallen[0]]) if len(fallen) else float(x[-1])
    said = "" if len(fallen) else "the score did not fall again: raise end_lr"
    return Suggestion(
        lr=float(x[reached(RISEN)]),
        band=(float(x[reached(MOSTLY)]), high),
        confidence="low" if said else "high",
        reason=said,
    )


def smooth_linear(lrs: Array, scores: Array) -> Array:
    """Return scores over learning rates that rise linearly without their noise, by local lines."""
    if len(lrs) < 2:
        return scores
    return local_lines(lrs, scores, LINEAR_WIDTH * float(lrs[-1] - lrs[0]))


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
    if len(y) < 3 or not _rise(x):
        return None
    descent = _descent(x, y, _widths(x)[0])
    return descent if descent.drop > 1e-6 * abs(descent.level) else None


def _descent(x: Array, y: Array, width: float) -> Descent:
    """Return the descent of a finite curve under a kernel of `width` decades."""
    level = float(np.median(y[: max(3, len(y) // 10)]))
    # The explosion at the end must not be smeared over the descent before it.
    curve = smooth(x, np.minimum(y, level + max(level - float(np.min(y)), 0.0)), width)
    bottom = int(np.argmin(curve))
    # A diverged loss may come down again far to the right, where no one can train.
    fallen = np.flatnonzero(curve < level - (level - curve[bottom]) / 2)
    if len(fallen):
        end = curve[fallen[0] :] > level - (1.0 - RETURNED) * (level - curve[bottom])
        if end.any():
            bottom = int(np.argmin(curve[: fallen[0] + int(np.argmax(end))]))
    return Descent(np.log10(x), curve, bottom, level, level - float(curve[bottom]))


def _widths(x: Array) -> tuple[float, ...]:
    """Return the kernels to try, wide enough for a curve of few points."""
    apart = math.log10(x[-1] / x[0]) / (len(x) - 1)
    return tuple(max(width, SPARSE * apart) for width in WIDTHS)


def _rise(lrs: Array) -> bool:
    return bool(len(lrs) and lrs[0] > 0 and np.all(np.diff(lrs) > 0))


def _seen(x: Array, y: Array, faint: float) -> tuple[Descent, float, bool] | None:
    """Return the descent that stands out of the noise, under which width, and whether clearly."""
    for width in _widths(x):
        descent = _descent(x, y, width)
        noise = _noise(y, descent, width)
        if descent.bottom > 0 and descent.drop > max(faint * noise, 1e-3 * abs(descent.level)):
            return descent, width, descent.drop > CLEAR * noise
    return None


def _found(descent: Descent, width: float, clear: bool, *, ended: bool) -> Suggestion:
    """Return the landmarks of a descent, and what follows from them."""
    lost = descent.lost(GIVE_BACK)
    onset = descent.done(BEGUN)
    end = float(10.0 ** descent.x[-1]) if lost is None else lost
    reached = ended or lost is not None
    steepest, high = descent.steepest, end / EDGE
    lr = min(math.sqrt(steepest * end), high)
    n = len(descent.x)
    reasons = [
        reason
        for holds, reason in (
            (reached, "the loss did not diverge: raise end_lr"),
            (clear, "the descent is hardly above the noise: raise num_it or the batch size"),
            (
                math.log10(onset) > descent.x[n // 10],
                "it falls from the first step: lower start_lr",
            ),
            (n > DENSE * (descent.x[-1] - descent.x[0]), "few steps for the range: raise num_it"),
        )
        if not holds
    ]
    places = (onset, steepest, descent.done(SETTLED), descent.minimum, end if reached else NAN)
    return Suggestion(
        lr=lr,
        band=(min(descent.done(MOSTLY), lr), high),
        confidence="low" if reasons else "high",
        reason="; ".join(reasons),
        points=dict(zip(LANDMARKS, places, strict=True)),
        width=width,
    )


def _nothing(reason: str) -> Suggestion:
    return Suggestion(NAN, (NAN, NAN), "none", reason, dict.fromkeys(LANDMARKS, NAN))


def _noise(y: Array, descent: Descent, width: float) -> float:
    """Return the standard deviation that noise gives the smoothed curve.

    That of the residuals before the turn, by their median so that outliers do not count, over the
    root of the number of points that a Gaussian kernel averages, 2 sqrt(pi) width density.
    """
    n = max(descent.bottom + 1, len(y) // 2)
    residuals = y[:n] - descent.curve[:n]
    deviation = 1.4826 * float(np.median(np.abs(residuals - np.median(residuals))))
    density = (len(y) - 1) / (descent.x[-1] - descent.x[0])
    return deviation / math.sqrt(max(1.0, 2.0 * math.sqrt(math.pi) * width * density))
