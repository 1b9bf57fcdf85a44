"""Pictures: (data, axes) -> axes. matplotlib is imported when the first one is drawn."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from onecycle.smoothing import Array

FAINT: dict[str, Any] = {"color": "C0", "alpha": 0.3, "linewidth": 0.8}
MANY = 5000  # points, more than which no picture shows
NAMED = 12  # lines, more than which a legend would hide
CLEAR: dict[str, Any] = {"color": "C0", "linewidth": 1.8}


def axes(ax: Axes | None) -> Axes:
    """Return `ax`, or the axes of a new figure."""
    import matplotlib.axes
    import matplotlib.pyplot as plt

    if ax is None:
        return plt.subplots(figsize=(6.0, 4.0), layout="constrained")[1]
    if not isinstance(ax, matplotlib.axes.Axes):
        raise TypeError(f"ax must be matplotlib Axes, got {ax!r}")
    return ax


def side_by_side(widths: Sequence[float]) -> Any:
    """Return the axes of a new figure in a row, of the given widths in inches."""
    import matplotlib.pyplot as plt

    size, ratios = (sum(widths), 3.6), {"width_ratios": widths}
    return plt.subplots(1, len(widths), figsize=size, gridspec_kw=ratios, layout="constrained")[1]


def in_notebook() -> bool:
    """Tell whether a Jupyter kernel shows the figures of a cell by itself."""
    ipython = sys.modules.get("IPython")  # a kernel has it; to import it takes a third of a second
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def over_epochs(
    epochs: Array,
    values: Array,
    name: str,
    ax: Axes | None = None,
    *,
    borders: Sequence[float] = (),
    log: bool = False,
) -> Axes:
    """Draw one number of every step over epochs."""
    ax = axes(ax)
    ax.plot(epochs, values, **CLEAR)
    ax.set(xlabel="epoch", ylabel=name, yscale="log" if log else "linear")
    _finish(ax, borders, len(epochs))
    return ax


def losses(
    epochs: Array,
    raw: Array,
    smoothed: Array,
    valid: Sequence[tuple[float, float]],
    ax: Axes | None = None,
    *,
    averaged: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    borders: Sequence[float] = (),
    log: bool = False,
) -> Axes:
    """Draw the training loss of every step and the validation losses after each epoch."""
    ax = axes(ax)
    ax.plot(epochs, raw, **FAINT, label="training")
    ax.plot(epochs, smoothed, **CLEAR, label="training, smoothed")
    if valid:
        ax.plot(*zip(*valid, strict=True), "o-", color="C1", markersize=4, label="validation")
    for i, (name, points) in enumerate((averaged or {}).items(), start=2):
        ax.plot(*zip(*points, strict=True), ".--", color=f"C{i}", linewidth=1.0, label=name)
    finite = raw[np.isfinite(raw)]
    if log and len(finite) and not (finite > 0).any():
        raise ValueError("log=True needs losses above 0, there are none")
    if not log and len(finite):
        # The first steps of a fresh model would squeeze everything else to the floor.
        heights = [v for _, v in valid if np.isfinite(v)]
        top = max(np.percentile(finite, 99), *heights, 0.0)
        ax.set_ylim(min(finite.min(), 0.0), top * 1.05 if top > 0 else None)
    ax.set(xlabel="epoch", ylabel="loss", yscale="log" if log else "linear")
    _finish(ax, borders, len(raw))
    # Losses fall; to look for the best place takes seconds when there are many steps.
    ax.legend(fontsize=8, loc="upper right")
    return ax


def live(
    epochs: Array,
    raw: Array,
    smoothed: Array,
    valid: Sequence[tuple[float, float]],
    lrs: Array,
    ax: Axes,
) -> tuple[Axes, Axes]:
    """Draw losses, and the learning rate on a second axis; return both axes.

    Of many steps every second, third, ... is drawn, so that a long run costs no more than a short.
    """
    some = slice(None, None, 1 + len(epochs) // MANY)
    losses(epochs[some], raw[some], smoothed[some], valid, ax)
    right = ax.twinx()
    right.plot(epochs[some], lrs[some], color="C2", linewidth=1.0, alpha=0.8, label="learning rate")
    right.set_ylabel("learning rate", color="C2")
    right.tick_params(axis="y", colors="C2")
    right.set_ylim(bottom=0.0)
    # The legend belongs above the line of the second axis.
    ax.set_zorder(right.get_zorder() + 1)
    ax.patch.set_visible(False)
    return ax, right


def norms(steps: Any, columns: Mapping[str, Array], ax: Axes | None = None) -> Axes:
    """Draw numbers above 0 by name over steps, the first names dark; few names have a legend."""
    import matplotlib.pyplot as plt

    ax = axes(ax)
    colours = plt.get_cmap("viridis")(np.linspace(0.0, 0.9, len(columns)))
    for (name, values), colour in zip(columns.items(), colours, strict=True):
        ax.plot(steps, values, color=colour, linewidth=1.0, label=name)
    ax.set(xlabel="step", ylabel="gradient norm", yscale="log")
    _finish(ax, (), len(steps))
    if len(columns) <= NAMED:
        ax.legend(fontsize=8, loc="upper right")
    return ax


def metrics(
    columns: Mapping[str, Sequence[tuple[float, float]]],
    ax: Axes | None = None,
    *,
    borders: Sequence[float] = (),
) -> Axes:
    """Draw each metric after every epoch."""
    ax = axes(ax)
    lines = [
        ax.plot(*zip(*column, strict=True), "o-", markersize=4, label=name)[0]
        for name, column in columns.items()
    ]
    ax.set(xlabel="epoch", ylabel="metric")
    _finish(ax, borders, 1, whole=True)
    # By handles: a name with a leading underscore would be left out.
    ax.legend(lines, list(columns), fontsize=8)
    return ax


def schedules(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], per_epoch: int, ax: Any = None
) -> tuple[Axes, ...]:
    """Draw planned learning rates and momenta over epochs, and a table of the rates by epoch.

    Args:
        curves: by name the learning rate and the momentum of every step; a momentum that the
            optimizer does not have is nan and not drawn.
        per_epoch: steps in an epoch.
        ax: axes for the learning rate alone.

    Returns:
        The axes that were drawn into.
    """
    steps = len(next(iter(curves.values()))[0])
    has_moms = not all(np.isnan(moms[0]) for _, moms in curves.values())
    text = boundary_table({name: lrs for name, (lrs, _) in curves.items()}, per_epoch)
    columns = 0.4 + 0.07 * len(text.splitlines()[0])  # inches, by the size of the text
    widths = [5.0, 5.0, columns] if has_moms else [5.0, columns]
    drawn: list[Any] = list(side_by_side(widths)) if ax is None else [axes(ax)]
    for i, quantity in enumerate(["learning rate", "momentum"][: len(drawn)]):
        if i == 0 or has_moms:
            lines = [
                drawn[i].plot(np.arange(steps) / per_epoch, pair[i], linewidth=1.8, label=name)[0]
                for name, pair in curves.items()
            ]
            drawn[i].set(xlabel="epoch", ylabel=quantity)
            _finish(drawn[i], (), steps)
            if i == 0 and any(curves):
                drawn[i].legend(lines, list(curves), fontsize=8)
    if len(drawn) > 1:
        drawn[-1].axis("off")
        drawn[-1].text(0.0, 1.0, text, family="monospace", fontsize=8, va="top")
    return tuple(drawn)


def boundary_table(lrs: Mapping[str, Sequence[float]], per_epoch: int) -> str:
    """Return the learning rate at the first batch of every epoch and at the very last, as text.

    Of more than 12 epochs every second, fifth, tenth ... is listed.

    >>> print(boundary_table({"": [0.1, 0.2, 0.3, 0.4]}, per_epoch=2))
    epoch        lr
        0  1.00e-01
        1  3.00e-01
      end  4.00e-01
    """
    steps = len(next(iter(lrs.values())))
    epochs = steps // per_epoch
    every = next(k * 10**n for n in range(9) for k in (1, 2, 5) if epochs <= 12 * k * 10**n)
    rows = {str(epoch): epoch * per_epoch for epoch in range(0, epochs, every)}
    heads = [name or "lr" for name in lrs]
    lines = ["epoch" + "".join(f"  {head:>8}" for head in heads)]
    for label, step in {**rows, "end": steps - 1}.items():
        cells = (
            f"  {one[step]:>{max(8, len(h))}.2e}"
            for h, one in zip(heads, lrs.values(), strict=True)
        )
        lines.append(f"{label:>5}" + "".join(cells))
    return "\n".join(lines)


def _finish(ax: Axes, borders: Sequence[float], drawn: int, *, whole: bool = False) -> None:
    """Add the grid, whole epochs as ticks, and a line where one fit ends and the next begins."""
    from matplotlib.ticker import MaxNLocator

    low, high = ax.get_xlim()
    if whole or high - low > 3:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if borders and drawn:
        whole_height = ax.get_xaxis_transform()
        ax.vlines(borders, 0, 1, "0.5", "dotted", linewidth=1.0, transform=whole_height)
    ax.grid(alpha=0.25)
