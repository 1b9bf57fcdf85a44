"""What an LR sweep says: lag-free smoothing, landmarks, one suggestion with a band.

Everything is computed in log10 of the learning rate, on the finite prefix of the curve. The whole
curve is there when it is judged, so the smoothing looks both ways: a moving average would drag the
minimum to the right.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onecycle.smoothing import Array, local_lines

WIDTHS = (0.12, 0.3)  # decades, deviation of the kernel; the wider one for a noisy curve
GIVE_BACK = 0.25  # share of the descent that is lost again where the curve counts as diverging
ONSET = 0.1  # share of the descent after which it has begun
FAINT, CLEAR = 6.0, 10.0  # descent over the noise that is left in the smoothed curve
MIN_POINTS = 10
NO_DESCENT = (
    "no descent: already trained, frozen, or the range is too small; keep the last max_lr or widen "
    "start_lr and end_lr; if the losses are noisy, raise num_it or the batch size"
)


@dataclass(frozen=True)
class Suggestion:
    """What `suggest` found; every learning rate is nan where the curve does not show it."""

    lr: float
    """The learning rate to take, sqrt(steepest divergence) kept within the band."""
    band: tuple[float, float]
    """From the steepest point to half of the divergence."""
    confidence: str
    """"high", "low" or "none"."""
    reason: str
    """Why the confidence is not high, in a sentence."""
    points: dict[str, float]
    """The learning rates of the landmarks: "steepest", "minimum", "divergence"."""
    width: float = WIDTHS[0]
    """The width of the kernel under which the curve was judged, in decades."""


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


def suggest(lrs: Any, losses: Any) -> Suggestion:
    """Return the suggestion of a sweep; it never raises on a short, flat or ragged curve.

    lr = sqrt(steepest divergence), kept within [steepest, divergence / 2]: between the point
    where the loss falls fastest and the point where it has given back a quarter of its descent.

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
    if not np.all(np.diff(x) > 0):
        return _nothing("the learning rates do not rise")
    # The explosion at the end must not be smeared over the descent before it.
    level = float(np.median(y[: max(3, len(y) // 10)]))
    capped = np.minimum(y, level + max(level - float(np.min(y)), 0.0))
    for width in WIDTHS:
        curve = smooth(x, capped, width)
        bottom = int(np.argmin(curve))
        drop = level - float(curve[bottom])
        noise = _noise(x, y, curve, bottom, width)
        if bottom > 0 and drop > max(FAINT * noise, 1e-3 * abs(level)):
            found = _found(x, curve, bottom, drop, ended, drop > CLEAR * noise)
            return replace(found, width=width)
    if ended:
        reason = f"the loss stops being finite at {x[-1]:.1e} without having fallen: check the data"
        return _nothing(reason)
    return _nothing(NO_DESCENT)


def _found(
    x: Array, curve: Array, bottom: int, drop: float, ended: bool, clear: bool
) -> Suggestion:
    """Return the landmarks of a curve that falls by `drop` to its `bottom`, and what follows."""
    # Only the last descent counts: ripples far to the left may be steeper.
    begun = np.flatnonzero(curve[:bottom] > curve[bottom] + (1.0 - ONSET) * drop)
    onset = int(begun[-1]) if len(begun) else 0
    slope = np.gradient(curve, np.log10(x))
    steepest = float(x[onset + int(np.argmin(slope[onset : bottom + 1]))])
    lost = np.flatnonzero(curve[bottom:] > curve[bottom] + GIVE_BACK * drop)
    reached = len(lost) > 0 or ended
    divergence = float(x[bottom + int(lost[0])] if len(lost) else x[-1])
    high = max(steepest, divergence / 2)
    reasons = [] if reached else ["the loss did not diverge: raise end_lr"]
    reasons += [] if clear else ["the descent is hardly above the noise: raise num_it"]
    return Suggestion(
        lr=min(math.sqrt(steepest * divergence), high),
        band=(steepest, high),
        confidence="low" if reasons else "high",
        reason="; ".join(reasons),
        points={
            "steepest": steepest,
            "minimum": float(x[bottom]),
            "divergence": divergence if reached else float("nan"),
        },
    )


def _nothing(reason: str) -> Suggestion:
    nan = float("nan")
    points = {"steepest": nan, "minimum": nan, "divergence": nan}
    return Suggestion(nan, (nan, nan), "none", reason, points)


def _noise(x: Array, y: Array, curve: Array, bottom: int, width: float) -> float:
    """Return the standard deviation that noise gives the smoothed curve.

    That of the residuals, by their median so that outliers do not count, over the root of the
    number of points that a Gaussian kernel averages, 2 sqrt(pi) width density.
    """
    residuals = y[: bottom + 1] - curve[: bottom + 1]
    deviation = 1.4826 * float(np.median(np.abs(residuals - np.median(residuals))))
    density = (len(x) - 1) / math.log10(x[-1] / x[0])
    return deviation / math.sqrt(max(1.0, 2.0 * math.sqrt(math.pi) * width * density))
