"""The order of an epoch and the seeds of its batches: functions of (seed, epoch) alone."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler


def permutation(n: int, seed: int, epoch: int) -> Tensor:
    """Return the indices of `n` samples in the order of an epoch; no global generator is touched.

    >>> torch.equal(permutation(9, seed=1, epoch=2), permutation(9, seed=1, epoch=2))
    True
    """
    entropy = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]
    return torch.randperm(n, generator=torch.Generator().manual_seed(int(entropy) >> 1))


def batch_seeds(n: int, seed: int, epoch: int) -> list[int]:
    """Return a seed for each of the `n` batches of an epoch, other ones than that of its order.

    >>> batch_seeds(3, seed=0, epoch=0)[:2] == batch_seeds(2, seed=0, epoch=0)
    True
    """
    # A sequence pads (seed, epoch) with zeros, so the third number must not be one.
    states = np.random.SeedSequence((seed, epoch, 1)).generate_state(n, np.uint64)
    return [int(state) for state in states >> np.uint64(1)]


class Shuffled(Sampler[int]):
    """Indices of `n` samples in the order that an `InMemoryLoader` of that seed has.

    torch's own sampler draws the order from a generator, and workers that persist draw from the
    same one in some epochs and not in others: a resumed run would have another order.

    >>> sampler = Shuffled(3, seed=0)
    >>> sampler.set_epoch(1)
    >>> sorted(sampler)
    [0, 1, 2]
    """

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed, self.epoch = n, seed, 0

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.n

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration has."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Yield the indices."""
        return iter(permutation(self.n, self.seed, self.epoch).tolist())
