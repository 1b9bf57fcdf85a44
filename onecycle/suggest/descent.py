"""The descent of a swept loss: smoothing without lag, landmarks, and the noise it stands out of.

Everything is computed in log10 of the learning rate, on the finite prefix of the curve. The whole
curve is there when it is judged, so the smoothing looks both ways: a moving average would drag the
minimum to the right.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from onecycle.smoothing import Array, local_lines

WIDTHS = (0.15, 0.3)  # decades, deviation of the kernel; the wider one for a noisy curve
SPARSE = 1.5  # distances between points, least deviation of the kernel
BEGUN = 0.1  # share of the descent
RETURNED = 0.9  # share that is lost where a descent is over, whatever comes after it


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
    """Return both as arrays, cut before the first loss that is not finite, or to the shorter."""
    x, y = (
        np.asarray(v.detach().cpu() if hasattr(v, "detach") else v, dtype=np.float64)
        for v in (lrs, losses)
    )
    x, y = x[: len(y)], y[: len(x)]
    bad = np.flatnonzero(~np.isfinite(y))
    n = bad[0] if len(bad) else len(y)
    return x[:n], y[:n]


def beginning(losses: Array) -> float:
    """Return where the losses begin: the median of the first tenth, at least of three."""
    return float(np.median(losses[: max(3, len(losses) // 10)]))


def capped(losses: Array) -> Array:
    """Return finite `losses`, none further above their beginning than the lowest is below.

    The explosion at the end must not be smeared over the descent before it.
    """
    level = beginning(losses)
    return np.minimum(losses, level + max(level - float(np.min(losses)), 0.0))


def rise(lrs: Array) -> bool:
    """Tell whether there are learning rates, above 0 and rising."""
    return bool(len(lrs) and lrs[0] > 0 and np.all(np.diff(lrs) > 0))


def widths(x: Array) -> tuple[float, ...]:
    """Return the kernels to try, wide enough for a curve of few points."""
    apart = math.log10(x[-1] / x[0]) / (len(x) - 1)
    return tuple(max(width, SPARSE * apart) for width in WIDTHS)


def descent_of(x: Array, y: Array, width: float) -> Descent:
    """Return the descent of a finite curve under a kernel of `width` decades."""
    level = beginning(y)
    curve = smooth(x, capped(y), width)
    bottom = int(np.argmin(curve))
    # A diverged loss may come down again far to the right, where no one can train.
    fallen = np.flatnonzero(curve < level - (level - curve[bottom]) / 2)
    if len(fallen):
        end = curve[fallen[0] :] > level - (1.0 - RETURNED) * (level - curve[bottom])
        if end.any():
            bottom = int(np.argmin(curve[: fallen[0] + int(np.argmax(end))]))
    return Descent(np.log10(x), curve, bottom, level, level - float(curve[bottom]))


def noise_left(y: Array, descent: Descent, width: float) -> float:
    """Return the standard deviation that noise gives the smoothed curve.

    That of the residuals before the turn, by their median so that outliers do not count, over the
    root of the number of points that a Gaussian kernel averages, 2 sqrt(pi) width density.
    """
    n = max(descent.bottom + 1, len(y) // 2)
    residuals = y[:n] - descent.curve[:n]
    deviation = 1.4826 * float(np.median(np.abs(residuals - np.median(residuals))))
    density = (len(y) - 1) / (descent.x[-1] - descent.x[0])
    return deviation / math.sqrt(max(1.0, 2.0 * math.sqrt(math.pi) * width * density))
