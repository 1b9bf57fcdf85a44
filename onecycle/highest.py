"""The inputs of the samples with the highest losses, kept while batches go by."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor


class Highest:
    """Keeps the inputs of the samples with the highest losses, batch by batch.

    Args:
        size: how many.

    >>> import torch
    >>> highest = Highest(1)
    >>> highest(torch.tensor([[1.0], [2.0]]), torch.tensor([0.5, 0.1]))
    >>> highest(torch.tensor([[3.0]]), torch.tensor([0.2]))
    >>> highest.inputs
    {0: tensor([1.])}
    """

    def __init__(self, size: int) -> None:
        self.size, self.seen = size, 0
        self._heap: list[tuple[float, int, Any]] = []

    def __call__(self, inputs: Any, losses: Tensor) -> None:
        """Take a batch in."""
        ranked = losses.nan_to_num(math.inf).sort(descending=True, stable=True)
        for loss, i in zip(ranked.values.tolist(), ranked.indices.tolist(), strict=True):
            # Of equal losses the first sample comes first, as in `top_losses`.
            place = loss, -(self.seen + i)
            if len(self._heap) < self.size:
                heapq.heappush(self._heap, (*place, _sample(inputs, i)))
            elif self._heap and place > self._heap[0][:2]:
                heapq.heapreplace(self._heap, (*place, _sample(inputs, i)))
            else:
                break
        self.seen += len(losses)

    @property
    def inputs(self) -> dict[int, Any]:
        """The inputs by number of the sample."""
        return {-number: sample for _, number, sample in self._heap}


def _sample(inputs: Any, i: int) -> Any:
    """Return sample i of a batch, in memory of its own."""
    if isinstance(inputs, Tensor):
        return inputs[i].clone() if inputs.ndim else inputs
    if isinstance(inputs, Mapping):
        return {name: _sample(value, i) for name, value in inputs.items()}
    return [_sample(value, i) for value in inputs] if isinstance(inputs, (tuple, list)) else inputs
