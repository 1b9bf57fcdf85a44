"""The picture of a search: the score against epochs and parameters."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from textwrap import fill
from typing import TYPE_CHECKING, Any

from onecycle import plot
from onecycle.tuning.space import Interval, described, epochs_of, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from onecycle.tuning.search import Row, Search

COLUMNS = 4  # pictures in a row
WIDE = 10.0  # highest over lowest score that are drawn by their logarithm
FAR = 3.0  # a loss over the median that is off the picture
LETTERS = 30  # in a line of the legend
BEST = "C3"


def search(found: Search, ax: Any = None) -> Any:
    """Draw the score over epochs and, without `ax`, over each parameter; return the axes."""
    if ax is not None:
        return over_epochs(found, plot.axes(ax))
    import matplotlib.pyplot as plt

    k = 1 + len(found.space)
    columns, rows = min(k, COLUMNS), math.ceil(k / COLUMNS)
    size = 4.0 * columns, 3.4 * rows
    figure, grid = plt.subplots(
        rows, columns, figsize=size, layout="constrained", squeeze=False, sharey=True
    )
    drawn = list(grid.flat)
    for unused in drawn[k:]:
        figure.delaxes(unused)
    over_epochs(found, drawn[0])
    for name, one in zip(found.space, drawn[1:k], strict=True):
        over_values(found, name, one)
        one.set_ylabel("")
    return tuple(drawn[:k])


def over_epochs(found: Search, ax: Axes) -> Axes:
    """Draw a line for each configuration, from rung to rung; those that came furthest stand out."""
    best, last = found.row, max(row["rung"] for row in found.table)
    for trial, rows in sorted(_by_trial(found).items(), key=lambda item: item[0] == best["trial"]):
        style: dict[str, Any] = {"color": "0.6", "linewidth": 1.0, "markersize": 4}
        if trial == best["trial"]:
            style = {
                "color": BEST,
                "linewidth": 2.4,
                "markersize": 7,
                "label": fill(described(found.best), LETTERS),
            }
        elif rows[-1]["rung"] == last:
            style = {"color": "C0", "linewidth": 1.6, "markersize": 5}
        epochs = [row["epochs"] for row in rows]
        ax.plot(epochs, [row[found.metric] for row in rows], "o-", **style)
    ax.set(xlabel="epochs of the cycle", ylabel=found.metric, xscale="log")
    ax.set_xticks(found.rungs, list(map(str, found.rungs)))
    ax.minorticks_off()
    _finish(found, ax, [(row["epochs"], row) for row in found.table])
    ax.legend(fontsize=8)
    return ax


def over_values(found: Search, name: str, ax: Axes) -> Axes:
    """Draw a dot for each cycle over the value of one parameter, longer cycles darker."""
    part = found.space[name]
    place = _places(found, name)
    for rung, epochs in enumerate(found.rungs, start=1):
        rows = [row for row in found.table if row["rung"] == rung]
        shade = 0.25 + 0.75 * rung / len(found.rungs)
        style: dict[str, Any] = {
            "color": "C0",
            "alpha": shade,
            "s": 15 + 45 * rung / len(found.rungs),
            "linewidths": 0,
        }
        heights = [row[found.metric] for row in rows]
        ax.scatter([place(row) for row in rows], heights, label=epochs_of(epochs), **style)
    best = found.row
    ring: dict[str, Any] = {"s": 160, "facecolors": "none", "edgecolors": BEST, "linewidths": 2.0}
    ax.scatter([place(best)], [best[found.metric]], **ring, label="best")
    if isinstance(part, Interval):
        ax.set_xscale("log" if part.log else "linear")
    else:
        values = part.values
        ax.set_xticks(range(len(values)), [shown(value) for value in values])
        ax.set_xlim(-0.5, len(values) - 0.5)
    ax.set(xlabel=name, ylabel=found.metric)
    _finish(found, ax, [(place(row), row) for row in found.table])
    if name == next(iter(found.space)):
        ax.legend(fontsize=8)
    return ax


def _places(found: Search, name: str) -> Any:
    """Return the function from a row to its place: the value, or the number of the choice."""
    part = found.space[name]
    if isinstance(part, Interval):
        return lambda row: row[name]
    return lambda row: next(
        i for i, v in enumerate(part.values) if v is row[name] or v == row[name]
    )


def _by_trial(found: Search) -> dict[int, list[Row]]:
    """Return the rows of each configuration, from its first rung to its last."""
    trials: dict[int, list[Row]] = {}
    for row in found.table:
        trials.setdefault(row["trial"], []).append(row)
    return trials


def _top(found: Search) -> float:
    """Return the highest score that is drawn: a hopeless loss would press the others together."""
    scores = [float(row[found.metric]) for row in found.table]
    scores = [score for score in scores if math.isfinite(score)]
    if found.higher_is_better or min(scores) <= 0:
        return max(scores)
    return min(max(scores), FAR * statistics.median(scores))


def _finish(found: Search, ax: Axes, places: Iterable[tuple[float, Row]]) -> None:
    """Add the grid, and marks at the top for cycles that diverged or lie far beyond."""
    top = _top(found)
    bad = [place for place, row in places if not row[found.metric] <= top]
    if bad:
        height = ax.get_xaxis_transform()
        ax.plot(bad, [0.97] * len(bad), "x", color="k", transform=height, label="diverged, far off")
    shown_scores = [row[found.metric] for row in found.table if row[found.metric] <= top]
    low = min(shown_scores)
    if low > 0 and top > WIDE * low:
        ax.set(yscale="log", ylim=(low / 1.3, top * 1.6))
    else:
        room = 0.07 * (top - low) or 0.1
        ax.set_ylim(low - room, top + room)
    ax.grid(alpha=0.25)
