"""What learning rates say that were judged on validation data: a race, and the range test."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onecycle.smoothing import Array, local_lines
from onecycle.suggest.descent import finite_prefix
from onecycle.suggest.sweep import FAINT, MIN_POINTS, Suggestion, nothing

MOSTLY, RISEN = 0.75, 0.95  # shares of the rise of a score
LINEAR_WIDTH = 0.06  # of the range, deviation of the kernel


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
    leaders = [min(entries, key=entries.__getitem__) for entries in losses]
    winner = leaders[-1]
    if not losses[-1][winner] < start:
        said = f"no rate lowered the validation loss, {start:.3g} before: keep the model as it is"
        return nothing(said)
    everyone, second = sorted(losses[0]), sorted(losses[1]) if len(losses) > 1 else [winner]
    reasons = []
    if winner in (everyone[0], everyone[-1]) and len(everyone) > 1:
        reasons.append("the winner is at the edge of what was tried: race again from there")
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
        return nothing(f"only {len(y)} finite scores, {MIN_POINTS} are needed: raise num_it")
    if not np.all(np.diff(x) > 0):
        return nothing("the learning rates do not rise")
    curve = smooth_linear(x, y)
    residuals = np.abs(y - curve)
    first = float(curve[0])
    # A model that broke down and recovers has risen, too; only what comes before counts.
    best = np.maximum.accumulate(curve)
    broken = np.flatnonzero(best - curve > (best - first) / 2)
    end = next((i for i in broken if best[i] - first > (float(curve.max()) - first) / 2), len(y))
    top = int(np.argmax(curve[:end]))
    rise = float(curve[top]) - first
    if rise <= FAINT / 2 * 1.4826 * float(np.median(residuals)) or not top:
        return nothing("the score does not rise above its noise: raise num_it, or change end_lr")

    def reached(share: float) -> int:
        return int(np.argmax(curve >= first + share * rise))

    fallen = np.flatnonzero(curve[top:] < curve[top] - (1.0 - RISEN) * rise)
    high = float(x[top + fallen[0]]) if len(fallen) else float(x[-1])
    said = "" if len(fallen) else "the score did not fall again: more may be possible"
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
