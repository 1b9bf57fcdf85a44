"""The picture of what `Learner.epoch_find` found: (result, axes) -> axes."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from onecycle import plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from onecycle.budget import Guess
    from onecycle.epochs_found import EpochFind

LETTERS = 17  # of a title to an inch
UNITS = {"hours": 3600.0, "minutes": 60.0, "seconds": 1.0}
BAND: dict[str, Any] = {"alpha": 0.15, "linewidth": 0}
POINTS: dict[str, Any] = {"fmt": "D", "color": "C1", "markersize": 6, "capsize": 3, "zorder": 3}


def budgets(found: EpochFind, ax: Axes | None = None) -> Axes:
    """Draw the measure that decides, and beside it the loss where that is another."""
    if ax is not None or found.by == "loss" or "loss" not in found.averaged:
        return _decision(found, plot.axes(ax))
    left, right = plot.side_by_side([6.0, 5.0])
    _curves(found, right, "loss")
    _finish(found, right, "loss")
    return _decision(found, left)


def _decision(found: EpochFind, ax: Axes) -> Axes:
    """Draw the measure that decides, with the guess and the choice, and the verdict above."""
    _curves(found, ax, found.by)
    if found.guess:
        _guess(found, found.guess, ax)
    if found.target is not None:
        label = f"target {found.target:g}"
        ax.axhline(found.target, color="0.5", linewidth=1.0, linestyle="dashed", label=label)
    ax.axvline(found.epochs, color="C2", linewidth=1.2, linestyle="dotted", zorder=1)
    ring: dict[str, Any] = {"markersize": 12, "markerfacecolor": "none", "markeredgewidth": 1.8}
    height = found.judged.means[found.judged.budgets.index(found.epochs)]
    label = f"chosen: {found.epochs} epoch{'s' * (found.epochs > 1)}"
    ax.plot([found.epochs], [height], "o", color="C2", **ring, label=label)
    _finish(found, ax, found.by)
    letters = int(ax.get_window_extent().width / ax.figure.dpi * LETTERS)
    ax.set_title(fill(found.verdict, max(20, letters)), fontsize=9)
    return ax


def _curves(found: EpochFind, ax: Axes, name: str) -> None:
    """Draw one measure over budgets: averaged as a line in its band, annealed as points."""
    averaged, annealed = found.averaged[name], found.annealed.get(name)
    x, means, errors = np.asarray(averaged.budgets), averaged.means, averaged.errors
    ax.plot(x, means, "o-", **plot.CLEAR, markersize=4, label=found.label)
    several = len(averaged.values) > 1
    if several:
        ax.plot(
            x,
            np.where(np.isfinite(averaged.seed_means), averaged.seed_means, np.nan).T,
            **plot.FAINT,
        )
    label = f"± SE against the best, of samples{' and seeds' * several}"
    ax.fill_between(x, means - errors, means + errors, color="C0", **BAND, label=label)
    if annealed:
        points: Any = (annealed.budgets, annealed.means, np.nan_to_num(annealed.errors))
        ax.errorbar(*points, **POINTS, label="annealed")


def _finish(found: EpochFind, ax: Axes, name: str) -> None:
    """Add the axes, the time above, the grid and the legend."""
    ax.set(xlabel="epochs of the run", ylabel=f"validation {name}")
    ax.set_xscale("log", base=2)
    _whole_numbers(ax, found.averaged[name].budgets)
    if found.seconds > 0:
        _time(ax, found.averaged[name].budgets[-1], found.seconds)
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8)


def _guess(found: EpochFind, guess: Guess, ax: Axes) -> None:
    """Draw the next doubling."""
    curve, color = found.judged, "C0"
    x, start = [curve.budgets[-1], guess.epochs], float(curve.means[-1])
    ax.fill_between(x, [start, guess.low], [start, guess.high], color=color, **BAND)
    label = f"guess at {guess.epochs}"
    ax.plot(x, [start, guess.value], "--", color=color, linewidth=1.4, label=label)


def _whole_numbers(ax: Axes, epochs: Sequence[int]) -> None:
    """Name the budgets, and the guessed one where the axis reaches it."""
    from matplotlib.ticker import NullLocator

    low, high = ax.get_xlim()
    ticks = [b for b in (*epochs, 2 * epochs[-1]) if low <= b <= high]
    ax.set_xticks(ticks, [str(b) for b in ticks])
    ax.xaxis.set_minor_locator(NullLocator())


def _time(ax: Axes, epochs: int, seconds: float) -> None:
    """Add an axis above with the training time of a run of each budget."""
    from matplotlib.ticker import NullLocator

    longest = seconds * epochs
    unit, size = next(((u, s) for u, s in UNITS.items() if longest >= 2 * s), ("seconds", 1.0))
    share = seconds / size
    ways: Any = (lambda x: x * share, lambda x: x / share)
    above = ax.secondary_xaxis("top", functions=ways)
    ticks = [share * tick for tick in ax.get_xticks()]
    above.set_xticks(ticks, [f"{tick:.2g}" if tick < 10 else f"{tick:.0f}" for tick in ticks])
    above.xaxis.set_minor_locator(NullLocator())
    above.set_xlabel(f"{unit} of training")
