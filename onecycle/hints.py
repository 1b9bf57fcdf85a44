"""Advice that a learner gives once, in a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onecycle import plan as plans

IN_A_ROW = 3
SHORT = 2  # epochs


def hint(fits: Sequence[Mapping[str, Any]]) -> str | None:
    """Return what to say after the last of some fits, given by their plans; None for nothing.

    Several short cycles in a row undo their own anneals: each begins by raising the rate again.
    """
    last = fits[-IN_A_ROW:]
    if len(last) < IN_A_ROW or not all(_is_short(fit) for fit in last):
        return None
    rates = [plans.rates(dict(fit)) for fit in last]
    if rates != rates[:1] * IN_A_ROW:
        return None
    epochs = sum(fit["epochs"] for fit in last)
    return (
        f"hint: {IN_A_ROW} short fits in a row at {rates[0][-1]:.2e}; one cycle of {epochs} "
        "epochs, or learn.extend after it, anneals once and not each time (learn.hints = False)"
    )


def _is_short(fit: Mapping[str, Any]) -> bool:
    whole: bool = fit["epochs"] == fit["tot_epochs"] <= SHORT
    return whole and fit["method"] == "fit_one_cycle"
