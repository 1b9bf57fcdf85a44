"""Pictures of what a model gets wrong: the confusion of classes, and images with their losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from onecycle import plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from onecycle.smoothing import Array

READABLE = 20  # classes whose cells have room for a number
NAMED = 60  # classes whose names have room along an axis
COLUMNS = 5
LETTERS = 26  # in a line over an image
CHANNELS = (1, 3)


def confusion(
    counts: Array, classes: Sequence[str], ax: Axes | None = None, *, normalize: bool = False
) -> Axes:
    """Draw how often each class, a row, was taken for each other, a column.

    Args:
        counts: (C, C).
        classes: C names.
        ax: axes to draw into.
        normalize: as shares of each row.
    """
    size = len(classes)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shown = shares if normalize else counts
    ax = _square(size) if ax is None else plot.axes(ax)
    ax.imshow(shown, cmap="Blues", vmin=0.0, vmax=1.0 if normalize else None)
    if size <= READABLE:
        dark = shown.max() / 2 if not normalize else 0.5
        for row, column in np.ndindex(size, size):
            value = shown[row, column]
            text = f"{value:.2f}" if normalize else f"{value:d}"
            color = "white" if value > dark else "black"
            ax.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    every = range(0, size, math.ceil(size / NAMED))
    names = [classes[i] for i in every]
    long = max(map(len, names)) * size > 40
    ax.set_xticks(list(every), names, rotation=90 if long else 0, fontsize=8)
    ax.set_yticks(list(every), names, fontsize=8)
    ax.set(xlabel="predicted", ylabel="actual")
    return ax


def is_image(sample: Any) -> bool:
    """Tell whether a sample can be shown as an image: (H, W), (1, H, W) or (3, H, W).

    >>> import torch
    >>> is_image(torch.zeros(3, 8, 8)), is_image(torch.zeros(64))
    (True, False)
    """
    if not isinstance(sample, Tensor) or sample.is_complex():
        return False
    return sample.ndim == 2 or (sample.ndim == 3 and sample.shape[0] in CHANNELS)


def images(samples: Sequence[Tensor], titles: Sequence[str], heading: str) -> list[Axes]:
    """Draw images under their titles, each from its own lowest value to its highest."""
    import matplotlib.pyplot as plt

    columns = min(len(samples), COLUMNS)
    rows = math.ceil(len(samples) / columns)
    size = (max(4.0, 1.9 * columns), 2.3 * rows)  # inches, with room for the words above
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    drawn: list[Axes] = list(grid.flat)
    for ax in drawn:
        ax.axis("off")
    for ax, sample, title in zip(drawn, samples, titles, strict=False):
        ax.imshow(_pixels(sample), cmap="gray", vmin=0.0, vmax=1.0)
        ax.set_title("\n".join(fill(line, LETTERS) for line in title.splitlines()), fontsize=8)
    figure.suptitle(heading, fontsize=9)
    return drawn[: len(samples)]


def _pixels(sample: Tensor) -> Array:
    """Return an image as matplotlib takes it, in 0..1; what is not finite is 0."""
    image = sample.double().nan_to_num(0.0, 0.0, 0.0)
    low, high = image.min(), image.max()
    image = (image - low) / (high - low).clamp(min=1e-12)
    if image.ndim == 3:
        image = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    return image.numpy()


def _square(size: int) -> Axes:
    """Return the axes of a new figure with room for so many classes."""
    import matplotlib.pyplot as plt

    side = min(12.0, 2.0 + 0.42 * max(size, 5))
    return plt.subplots(figsize=(side, side), layout="constrained")[1]
