"""What a sweep says: a suggestion with a band and a confidence, or a sentence why there is none."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onecycle.smoothing import Array
from onecycle.suggest.descent import (
    BEGUN,
    WIDTHS,
    Descent,
    descent_of,
    finite_prefix,
    noise_left,
    rise,
    widths,
)

# Chosen on one half of the tasks of tests/benchmarks/lr_find_regret.py; RESULTS.md has the other.
SETTLED = 0.95  # share of the descent
GIVE_BACK = 0.25  # share of the descent that is lost again where the curve counts as diverging
SAFE = 2.0  # how far the suggestion stays below the mean of its landmarks, and the band below it
EDGE = 3.0  # how far the band stays below the divergence
FAINT, CLEAR = 12.0, 24.0  # descent over the noise that is left in the smoothed curve
CLOSE = (3.0, 4.0)  # how far a closer look goes below the onset and beyond the divergence
APART = 0.3  # decades
MIN_POINTS = 10
DENSE = 6.0  # points in a decade
RISING = 4.0  # standard deviations between the first losses and the next
NOT_DIVERGED = "the loss did not diverge: raise end_lr"
FALLS_AT_ONCE = "the loss falls from the first step on: lower start_lr"
RISES_AT_ONCE = "the loss rises from the first step on: lower start_lr"
FEW_STEPS = "few steps for the range: raise num_it"
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
    points: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LANDMARKS, NAN))
    """The learning rates of the landmarks, by name."""
    width: float = WIDTHS[0]
    """The width of the kernel under which the curve was judged, in decades."""


def suggest(lrs: Any, losses: Any) -> Suggestion:
    """Return the suggestion of a sweep; it never raises on a short, flat or ragged curve.

    lr = sqrt(settled divergence) / 2: half of the geometric mean of where 95 % of the descent are
    done and where a quarter of it is lost again. The band goes from lr / 2 to divergence / 3, or to
    lr where that is higher.

    Args:
        lrs: rising learning rates.
        losses: the training loss at each; cut at the first that is not finite.

    >>> lrs = np.logspace(-6, 1, 100)
    >>> losses = 2.3 - 2 / (1 + (1e-3 / lrs) ** 2) + np.minimum(lrs, 5) ** 2
    >>> 1e-3 < suggest(lrs, losses).lr < 0.5
    True
    """
    x, y = finite_prefix(lrs, losses)
    ended = len(y) < min(len(lrs), len(losses))
    if len(y) < MIN_POINTS:
        said = f"only {len(y)} finite losses, {MIN_POINTS} are needed"
        return nothing(f"{said}: check the data, or lower start_lr")
    if not rise(x):
        return nothing("the learning rates do not rise")
    seen = _seen(x, y, FAINT)
    if seen is not None:
        found = _found(*seen, ended=ended)
        return _doubted(found, RISES_AT_ONCE) if _rises(y) else found
    if ended:
        reason = f"the loss stops being finite at {x[-1]:.1e} without having fallen: check the data"
        return nothing(reason)
    if _rises(y):
        return nothing(RISES_AT_ONCE)
    return nothing(NO_DESCENT if dense(x) else FEW_STEPS)


def refined(first: Suggestion, closeup: Suggestion, lrs: Any) -> Suggestion:
    """Return what a closer look says, with reasons that fit the first sweep, over `lrs`.

    The user did not choose the range of the closer look, only that of the first sweep.
    """
    ends = (NOT_DIVERGED, FALLS_AT_ONCE, RISES_AT_ONCE)
    reasons = [reason for reason in _reasons(closeup) if reason not in ends]
    reasons += [reason for reason in _reasons(first) if reason in ends]
    if NOT_DIVERGED in _reasons(closeup) and NOT_DIVERGED not in reasons:
        reasons.append("the loss did not diverge in the closer look: raise num_it")
    if math.isfinite(closeup.lr) and not dense(lrs) and FEW_STEPS not in reasons:
        reasons.append(FEW_STEPS)
    confidence = closeup.confidence
    if math.isfinite(closeup.lr):
        confidence = "low" if reasons else "high"
    return replace(closeup, confidence=confidence, reason="; ".join(reasons))


def _doubted(judged: Suggestion, reason: str) -> Suggestion:
    reasons = [*_reasons(judged), reason]
    return replace(judged, confidence="low", reason="; ".join(reasons))


def _reasons(judged: Suggestion) -> list[str]:
    return judged.reason.split("; ") if judged.reason else []


def _rises(losses: Array) -> bool:
    """Tell whether the loss rises out of its noise at once."""
    tenth = max(MIN_POINTS // 2, len(losses) // 10)
    head, after = losses[:tenth], losses[tenth : 2 * tenth]
    return float(np.median(after)) > float(np.median(head)) + RISING * float(np.std(head))


def dense(lrs: Any) -> bool:
    """Tell whether there are at least six learning rates to a decade."""
    return len(lrs) > DENSE * math.log10(lrs[-1] / lrs[0])


def bracket(lrs: Any, losses: Any) -> tuple[float, float] | None:
    """Return where a sweep is worth a closer look; None where not even a faint descent is seen.

    From a third of where the descent begins, but not below the sweep, to four times the divergence.
    """
    x, y = finite_prefix(lrs, losses)
    seen = _seen(x, y, FAINT / 2) if len(y) >= MIN_POINTS and rise(x) else None
    if seen is None:
        return None
    descent = seen[0]
    end = descent.lost(GIVE_BACK)
    low = max(descent.done(BEGUN) / CLOSE[0], float(x[0]))
    return low, CLOSE[1] * (float(x[-1]) if end is None else end)


def pooled(sweeps: Sequence[Any]) -> Array:
    """Return the median loss of several sweeps at each learning rate, as far as the longest goes.

    A sweep that was stopped counts on with its last loss, one that ended in a loss that is not
    finite as infinite; the median is finite while more than half of them are.

    >>> pooled([[3.0, 2.0, 9.0], [3.2, 1.8], [2.8, 1.9, 5.0]]).tolist()
    [3.0, 1.9, 5.0]
    """
    rows = np.empty((len(sweeps), max(map(len, sweeps))))
    for row, losses in zip(rows, sweeps, strict=True):
        row[:] = losses[-1]
        row[: len(losses)] = losses
    rows[~np.isfinite(rows).cumprod(axis=1).astype(bool)] = np.inf
    # Between a number and infinity there is no mean.
    middle = np.sort(rows, axis=0)
    high, low = middle[len(rows) // 2], middle[(len(rows) - 1) // 2]
    return np.where(np.isfinite(high), (low + high) / 2, np.inf)


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
    if len(found) < len(sweeps):
        reasons.append(f"only {len(found)} of {len(sweeps)} sweeps show a descent: raise num_it")
    if apart > APART:
        reasons.append(f"the sweeps lie {apart:.1f} decades apart: raise num_it or n_sweeps")
    return replace(
        judged,
        lr=min(judged.lr, high),
        band=(min(judged.band[0], high), high),
        confidence="low" if reasons else "high",
        reason="; ".join(reasons),
    )


def _seen(x: Array, y: Array, faint: float) -> tuple[Descent, float, bool] | None:
    """Return the descent that stands out of the noise, under which width, and whether clearly."""
    for width in widths(x):
        descent = descent_of(x, y, width)
        noise = noise_left(y, descent, width)
        if descent.bottom > 0 and descent.drop > max(faint * noise, 1e-6 * abs(descent.level)):
            return descent, width, descent.drop > CLEAR * noise
    return None


def _found(descent: Descent, width: float, clear: bool, *, ended: bool) -> Suggestion:
    """Return the landmarks of a descent, and what follows from them."""
    lost = descent.lost(GIVE_BACK)
    onset = descent.done(BEGUN)
    end = float(10.0 ** descent.x[-1]) if lost is None else lost
    reached = ended or lost is not None
    settled = descent.done(SETTLED)
    lr = math.sqrt(settled * end) / SAFE
    n = len(descent.x)
    reasons = [
        reason
        for holds, reason in (
            (reached, NOT_DIVERGED),
            (
                not ended or lost is not None,
                "the loss stops being finite before it rises: check the data",
            ),
            (clear, "the descent is hardly above the noise: raise num_it or the batch size"),
            (
                math.log10(onset) > descent.x[n // 10],
                FALLS_AT_ONCE,
            ),
            (dense(10.0**descent.x), FEW_STEPS),
        )
        if not holds
    ]
    places = (onset, descent.steepest, settled, descent.minimum, end if reached else NAN)
    return Suggestion(
        lr=lr,
        band=(lr / SAFE, max(lr, end / EDGE)),
        confidence="low" if reasons else "high",
        reason="; ".join(reasons),
        points=dict(zip(LANDMARKS, places, strict=True)),
        width=width,
    )


def nothing(reason: str) -> Suggestion:
    """Return that there is no suggestion, and why."""
    return Suggestion(NAN, (NAN, NAN), "none", reason)
