"""Pictures of what layers put out during training: (data, axes) -> axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onecycle import plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from onecycle.smoothing import Array

    Steps = np.ndarray[Any, np.dtype[Any]]


def layer_stats(steps: Steps, curves: dict[str, Array], layer: str, ax: Any = None) -> Any:
    """Draw each curve of one layer over steps, in a row of panels.

    Args:
        steps: the step of each record, (records,).
        curves: what to draw, (records,) each, by its name.
        layer: what the picture is of.
        ax: as many axes as there are curves; None makes a figure.

    Returns:
        The axes.

    Raises:
        TypeError: `ax` is not that many axes.

    >>> import numpy as np
    >>> layer_stats(np.arange(2.0), {"mean": np.ones(2), "std": np.ones(2)}, "conv").shape
    (2,)
    """
    panels = plot.side_by_side([5.0] * len(curves)) if ax is None else ax
    row = np.atleast_1d(panels).ravel()
    if len(row) != len(curves):
        raise TypeError(f"ax must be a row of {len(curves)} axes, got {ax!r}")
    for panel, (name, values) in zip(map(plot.axes, row), curves.items(), strict=True):
        panel.plot(steps, values, **plot.CLEAR)
        panel.set(xlabel="step", title=name)
        panel.grid(alpha=0.25)
    row[0].set_ylabel(layer)
    return panels


def color_dim(
    steps: Steps, histogram: Array, top: float, layer: str, ax: Axes | None = None
) -> Axes:
    """Draw the histograms of one layer as coloured columns, one for each record.

    Args:
        steps: the step of each record, (records,), evenly spaced.
        histogram: counts, (records, bins), of absolute values from 0 to `top`.
        top: where the bins end.
        layer: what the picture is of.
        ax: axes to draw into; None makes a figure.

    >>> import numpy as np
    >>> color_dim(np.arange(3), np.ones((3, 40)), 10.0, "conv").get_ylabel()
    '|activation|'
    """
    ax = plot.axes(ax)
    width = (steps[-1] - steps[0]) / max(1, len(steps) - 1) or 1.0
    # Bins above all that ever was there would fill most of the picture with nothing.
    bins = histogram.shape[1]
    shown = int(max(np.nonzero(np.nan_to_num(histogram))[1], default=bins - 1)) + 1
    histogram, top = histogram[:, :shown], top * shown / bins
    extent = (steps[0] - width / 2, steps[-1] + width / 2, 0.0, top)
    # A count of 1 beside thousands is what this picture is to show, hence the logarithm.
    ax.imshow(
        np.log1p(histogram.T), origin="lower", aspect="auto", extent=extent, interpolation="nearest"
    )
    ax.set(xlabel="step", ylabel="|activation|")
    ax.set_title(f"{layer}: log(1 + count)", loc="left")
    return ax
