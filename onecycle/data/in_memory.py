"""The in-memory loader: whole batches cut out of tensors, ordered by seed and epoch alone."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onecycle import checks
from onecycle.batch import as_device, as_tensor


class InMemoryLoader:
    """Batches of tensors that fit in memory, without a data set object or workers.

    Args:
        tensors: tensors, arrays, data frames or series of one length; a batch is a tuple with a
            slice of each. float64 becomes torch's default type, but for tensors.
        batch_size: samples in a batch, at least 1; the last batch of an epoch may be smaller.
        shuffle: draw a new order for each epoch from (seed, epoch) alone, touching no global
            generator.
        seed: at least 0.
        device: where the tensors are kept; None leaves them where they are.

    Raises:
        ValueError, TypeError: lengths that differ, no samples, or an argument out of its range.

    >>> loader = InMemoryLoader(torch.arange(5), batch_size=2)
    >>> [batch[0].tolist() for batch in loader]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        *tensors: Any,
        batch_size: int = 64,
        shuffle: bool = False,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        place = None if device is None else as_device(device)
        if not tensors:
            raise ValueError("tensors must hold at least one tensor")
        self.tensors = tuple(as_tensor(value).to(place) for value in tensors)
        lengths = {len(tensor) if tensor.ndim else 0 for tensor in self.tensors}
        if len(lengths) > 1 or lengths == {0}:
            raise ValueError(f"tensors must have one length above 0, got {sorted(lengths)}")
        self.n = lengths.pop()
        self.batch_size = checks.integer("batch_size", batch_size)
        self.shuffle = checks.flag("shuffle", shuffle)
        self.seed = checks.integer("seed", seed, low=0)
        self.epoch = 0

    def __len__(self) -> int:
        """Return the number of batches."""
        return math.ceil(self.n / self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration has."""
        self.epoch = epoch

    def order(self, epoch: int) -> Tensor:
        """Return the indices of all samples in the order of `epoch`.

        >>> loader = InMemoryLoader(torch.arange(6), shuffle=True, seed=1)
        >>> torch.equal(loader.order(3), loader.order(3))
        True
        """
        if not self.shuffle:
            return torch.arange(self.n)
        entropy = np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(entropy) >> 1)
        return torch.randperm(self.n, generator=generator)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches of the chosen epoch."""
        return self.batches()

    def batches(self, first: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches of the chosen epoch from number `first` on.

        >>> loader = InMemoryLoader(torch.arange(5), batch_size=2)
        >>> [batch[0].tolist() for batch in loader.batches(first=1)]
        [[2, 3], [4]]
        """
        begin = first * self.batch_size
        if not self.shuffle:
            for start in range(begin, self.n, self.batch_size):
                # Copies, for a model may write into its input.
                yield tuple(t[start : start + self.batch_size].clone() for t in self.tensors)
            return
        order = self.order(self.epoch)[begin:].to(self.tensors[0].device)
        for chosen in torch.split(order, self.batch_size) if len(order) else ():
            yield tuple(tensor[chosen] for tensor in self.tensors)
