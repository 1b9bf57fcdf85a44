"""Classes: what was predicted beside what is there, counted, and figures for each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from onecycle.smoothing import Array


class Labels(NamedTuple):
    """Classes that were predicted, and those that there are."""

    actual: Tensor
    predicted: Tensor
    probability: Tensor  # of what was predicted
    n_classes: int


def labels(preds: Any, targets: Any) -> Labels | None:
    """Return the classes in predictions and targets, None where they are of another kind.

    >>> labels(torch.tensor([0.2, 0.9]), torch.tensor([0.0, 1.0])).predicted
    tensor([0, 1])
    """
    if not (isinstance(preds, Tensor) and isinstance(targets, Tensor)):
        return None
    whole = not (targets.is_floating_point() or targets.is_complex())
    if preds.ndim > 1 and preds.shape[1] > 1:
        if not whole or targets.shape != preds.shape[:1] + preds.shape[2:]:
            return None
        best = preds.max(1)
        return Labels(targets.long(), best.indices, best.values, preds.shape[1])
    if preds.shape[:1].numel() != preds.numel() or targets.numel() != preds.numel():
        return None
    p, actual = preds.flatten(), targets.flatten()
    if not (((p >= 0) & (p <= 1)).all() and ((actual == 0) | (actual == 1)).all()):
        return None
    predicted = (p > 0.5).long()
    return Labels(actual.long(), predicted, torch.where(predicted == 1, p, 1 - p), 2)


def confusion(found: Labels) -> Array:
    """Return how often each class, a row, was taken for each other, a column: (C, C) counts.

    >>> confusion(Labels(torch.tensor([0, 1, -100]), torch.tensor([1, 1, 1]), torch.ones(3), 2))
    array([[0, 1],
           [0, 1]])
    """
    actual, predicted, size = found.actual.flatten(), found.predicted.flatten(), found.n_classes
    known = (actual >= 0) & (actual < size)
    cells = actual[known] * size + predicted[known]
    counts: Array = torch.bincount(cells, minlength=size * size).reshape(size, size).numpy()
    return counts


def figures(counts: Array, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row of figures for each class, and three of their means; see `per_class`.

    >>> figures(np.array([[1, 0], [1, 1]]), ["cat", "dog"])[1]
    {'class': 'dog', 'precision': 1.0, 'recall': 0.5, 'f1': 0.6666666666666666, 'support': 2}
    """
    tp, support, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    both = _share(2 * tp, predicted + support)
    columns = np.stack([_share(tp, predicted), _share(tp, support), both])
    n = support.sum()
    accuracy = _share(tp.sum(), n)
    weighted = _share((columns * support).sum(axis=1), n)
    return [
        *(_row(name, columns[:, i], support[i]) for i, name in enumerate(classes)),
        _row("accuracy", [math.nan, math.nan, accuracy], n),
        _row("macro avg", columns.mean(axis=1), n),
        _row("weighted avg", weighted, n),
    ]


def _share(part: Any, whole: Any) -> Any:
    """Return part / whole, 0 where the whole is."""
    return np.where(whole > 0, part / np.maximum(whole, 1), 0.0)


def _row(name: str, numbers: Sequence[Any] | Array, support: Any) -> dict[str, Any]:
    precision, recall, f1 = map(float, numbers)
    named = {"precision": precision, "recall": recall, "f1": f1}
    return {"class": name, **named, "support": int(support)}
