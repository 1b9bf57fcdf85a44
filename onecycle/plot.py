"""Pictures: (data, axes) -> axes. matplotlib is imported when the first one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from onecycle.callbacks.lr_finder import LRFind
    from onecycle.smoothing import Array

FAINT: dict[str, Any] = {"color": "C0", "alpha": 0.3, "linewidth": 0.8}
CLEAR: dict[str, Any] = {"color": "C0", "linewidth": 1.8}


def axes(ax: Axes | None) -> Axes:
    """Return `ax`, or the axes of a new figure."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(6.0, 4.0), layout="constrained")[1]


def side_by_side(n: int) -> Any:
    """Return the axes of a new figure with `n` of them in a row."""
    import matplotlib.pyplot as plt

    return plt.subplots(1, n, figsize=(5.0 * n, 3.6), layout="constrained")[1]


def in_notebook() -> bool:
    """Tell whether a Jupyter kernel shows the figures of a cell by itself."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return hasattr(get_ipython(), "kernel")


def lr_find(found: LRFind, ax: Axes | None = None) -> Axes:
    """Draw the sweep, raw and smoothed, with band, suggestion and landmarks."""
    ax = axes(ax)
    curve = found.smoothed
    lrs = found.lrs[: len(curve)]
    ax.plot(found.lrs, found.losses, **FAINT, label="loss of each step")
    ax.plot(lrs, curve, **CLEAR, label="smoothed")
    if np.isfinite(found):
        ax.axvspan(*found.band, color="C1", alpha=0.15, label="band")
        for mark, (name, lr) in zip("v^x", found.points.items(), strict=True):
            if np.isfinite(lr):
                height = np.interp(np.log10(lr), np.log10(lrs), curve)
                ax.plot(lr, height, mark, color="C3", markersize=6, label=name)
        ax.axvline(float(found), color="C1", linewidth=1.8, label=f"suggestion {found:.2e}")
    else:
        ax.set_title("no suggestion: " + found.reason, fontsize=8, wrap=True)
    if len(curve):
        ax.set_ylim(_window(found.losses[: len(curve)], curve))
    ax.set(xscale="log", xlabel="learning rate", ylabel="training loss")
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8)
    return ax


def over_epochs(epochs: Array, values: Array, name: str, ax: Axes | None = None) -> Axes:
    """Draw one number of every step over epochs."""
    ax = axes(ax)
    ax.plot(epochs, values, **CLEAR)
    ax.set(xlabel="epoch", ylabel=name)
    ax.grid(alpha=0.25)
    return ax


def losses(
    epochs: Array,
    raw: Array,
    smoothed: Array,
    valid: Sequence[tuple[int, float]],
    ax: Axes | None = None,
) -> Axes:
    """Draw the training loss of every step and the validation loss after each epoch."""
    ax = axes(ax)
    ax.plot(epochs, raw, **FAINT, label="training")
    ax.plot(epochs, smoothed, **CLEAR, label="training, smoothed")
    if valid:
        ax.plot(*zip(*valid, strict=True), "o-", color="C1", markersize=4, label="validation")
    if len(raw) and np.isfinite(raw).any():
        # The first steps of a fresh model would squeeze everything else to the floor.
        heights = [v for _, v in valid if np.isfinite(v)]
        top = max(np.nanpercentile(raw[np.isfinite(raw)], 99), *heights, 0.0)
        low = np.nanmin(raw[np.isfinite(raw)])
        ax.set_ylim(min(low, 0.0) if low < 0 else 0.0, top * 1.05 if top > 0 else None)
    ax.set(xlabel="epoch", ylabel="loss")
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8)
    return ax


def metrics(columns: Mapping[str, Sequence[tuple[int, float]]], ax: Axes | None = None) -> Axes:
    """Draw each metric after every epoch."""
    ax = axes(ax)
    for name, column in columns.items():
        ax.plot(*zip(*column, strict=True), "o-", markersize=4, label=name)
    ax.set(xlabel="epoch", ylabel="metric")
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8)
    return ax


def _window(raw: Array, curve: Array) -> tuple[float, float]:
    """Return limits that show the descent and the turn, not the whole explosion."""
    level, low = float(np.median(raw[: max(3, len(raw) // 10)])), float(min(raw.min(), curve.min()))
    top = max(level, float(np.percentile(raw, 75)))
    margin = max(top - low, 1e-12) * 0.3
    return low - margin / 3, top + margin
