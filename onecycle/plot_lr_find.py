"""Pictures of what `Learner.lr_find` found: (result, axes) -> axes."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from onecycle import plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from onecycle.found import LRFind, LROverlay, LRRace, LRRangeTest
    from onecycle.smoothing import Array

LETTERS = 16  # of a title to an inch
MARKS = {"onset": ".", "steepest": "v", "settled": "D", "minimum": "^", "divergence": "x"}


def sweep(found: LRFind, ax: Axes | None = None) -> Axes:
    """Draw the sweep, raw and smoothed, with band, suggestion and landmarks."""
    ax = plot.axes(ax)
    judged = found.judged
    if judged is not found:
        ax.plot(found.lrs, found.losses, **{**plot.FAINT, "color": "0.5"}, label="first sweep")
    curve = judged.smoothed
    lrs = judged.lrs[: len(curve)]
    label = "loss of each step"
    for losses in judged.sweeps:
        ax.plot(judged.lrs[: len(losses)], losses, **plot.FAINT, label=label)
        label = ""
    ax.plot(lrs, curve, **plot.CLEAR, label="smoothed")
    _answer(found, ax)
    for name, mark in MARKS.items():
        lr = found.points.get(name, np.nan)
        if np.isfinite(lr):
            height = np.interp(np.log10(lr), np.log10(lrs), curve)
            ax.plot(lr, height, mark, color="C3", markersize=6, label=name)
    if len(curve):
        ax.set_ylim(window(judged.losses[: len(curve)], curve))
    ax.set(xscale="log", ylabel="training loss")
    return _finish(ax)


def overlay(sweeps: LROverlay, ax: Axes | None = None) -> Axes:
    """Draw the smoothed curves of several sweeps, with a mark at each suggestion."""
    ax = plot.axes(ax)
    limits = []
    for i, (value, found) in enumerate((value, one.judged) for value, one in sweeps.items()):
        curve, color = found.smoothed, f"C{i % 10}"
        lrs = found.lrs[: len(curve)]
        ax.plot(lrs, curve, color=color, linewidth=1.8, label=f"{sweeps.name} {value:g}")
        if np.isfinite(found):
            height = np.interp(np.log10(found), np.log10(lrs), curve)
            ax.plot(float(found), height, "o", color=color, markersize=6)
        if len(curve):
            limits.append(window(found.losses[: len(curve)], curve))
    if limits:
        ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    ax.set(xscale="log", ylabel="training loss, smoothed")
    return _finish(ax)


def race(found: LRRace, ax: Axes | None = None) -> Axes:
    """Draw the validation loss of every cycle, a line for each round."""
    ax = plot.axes(ax)
    for k, entries in enumerate(found.rounds):
        lrs, losses = list(entries), list(entries.values())
        ax.plot(lrs, losses, "o-", color=f"C{k}", label=f"cycles of {found.steps * 2**k} steps")
    ax.axhline(found.start, color="0.5", linewidth=1.0, linestyle="dashed", label="before training")
    _answer(found, ax)
    finite = found.losses[np.isfinite(found.losses)]
    low, top = min([*finite, found.start]), max(np.median([*finite, found.start]), found.start)
    margin = 0.1 * max(top - low, 1e-12)
    ax.set_ylim(low - margin, top + margin)
    ax.set(xscale="log", ylabel="validation loss")
    return _finish(ax)


def range_test(found: LRRangeTest, ax: Axes | None = None) -> Axes:
    """Draw the score against a learning rate that rose linearly."""
    ax = plot.axes(ax)
    curve = found.smoothed
    ax.plot(found.lrs, found.losses, ".-", **plot.FAINT, label=found.name)
    ax.plot(found.lrs[: len(curve)], curve, **plot.CLEAR, label="smoothed")
    _answer(found, ax)
    ax.set(ylabel=found.name)
    return _finish(ax)


def window(raw: Array, curve: Array) -> tuple[float, float]:
    """Return limits that show the descent and the turn, not the whole explosion."""
    level, low = float(np.median(raw[: max(3, len(raw) // 10)])), float(min(raw.min(), curve.min()))
    top = max(level, float(np.percentile(raw, 75)))
    margin = max(top - low, 1e-12) * 0.3
    return low - margin / 3, top + margin


def _answer(found: LRFind, ax: Axes) -> None:
    """Draw suggestion and band, and say why they are not to be trusted, or not there."""
    if np.isfinite(found):
        band: dict[str, Any] = {"color": "C1", "alpha": 0.15, "label": "band"}
        ax.axvspan(*found.band, **band)
        ax.axvline(float(found), color="C1", linewidth=1.8, label=f"suggestion {found:.2e}")
    if found.reason:
        head = "no suggestion" if np.isnan(found) else f"{found.confidence} confidence"
        letters = int(ax.get_window_extent().width / ax.figure.dpi * LETTERS)
        ax.set_title(fill(f"{head}: {found.reason}", max(20, letters)), fontsize=8)


def _finish(ax: Axes) -> Axes:
    ax.set_xlabel("learning rate")
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8)
    return ax
