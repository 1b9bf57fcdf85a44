"""The in-memory loader: whole batches cut out of tensors, ordered by seed and epoch alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onecycle import checks
from onecycle.batch import as_device, as_tensor
from onecycle.data.augment import Augment, as_augmentations, chained
from onecycle.data.normalize import Normalize
from onecycle.data.order import batch_seeds, permutation

if TYPE_CHECKING:
    from typing_extensions import Self

BLOCK = 1 << 20  # bytes gathered at once: they stay in the cache until they are used
ALIGNED = {"cpu": 64}  # bytes; where torch lets the memory of a tensor begin, elsewhere at 512


class InMemoryLoader:
    """Batches of tensors that fit in memory, without a data set object or workers.

    A batch is a pure function of (seed, epoch, number), augmentation included; no global generator
    is touched. A model may write into a batch; small ones are cut out of one block of memory, which
    lives as long as any of them.

    Args:
        tensors: tensors, arrays, data frames or series of one length; a batch is a tuple with a
            slice of each. float64 becomes torch's default type, but for tensors.
        batch_size: samples in a batch, at least 1; the last batch of an epoch may be smaller.
        shuffle: draw a new order for each epoch from (seed, epoch) alone.
        seed: at least 0.
        device: where the tensors are kept, and batches are gathered and augmented; None leaves
            them where they are.
        augment: one function of a batch of the first tensor, the inputs, or several in order, such
            as those of `onecycle.data.augment`. One with a parameter `generator` is given a
            generator that belongs to the batch. They see what the model would get: normalised
            inputs, in memory of their own.
        normalize: (mean, std), numbers or one for each channel: the inputs become
            (x - mean) / std, bytes (uint8) as float32 / 255 before.
        drop_last: leave a smaller last batch out; with `shuffle` other samples in each epoch.

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
        augment: Augment = (),
        normalize: Any = None,
        drop_last: bool = False,
    ) -> None:
        place = None if device is None else as_device(device)
        if not tensors:
            raise ValueError("tensors must hold at least one tensor")
        # Rows that lie in one piece are copied at once.
        self.tensors = tuple(as_tensor(value).to(place).contiguous() for value in tensors)
        lengths = {len(tensor) if tensor.ndim else 0 for tensor in self.tensors}
        if len(lengths) > 1 or lengths == {0}:
            raise ValueError(f"tensors must have one length above 0, got {sorted(lengths)}")
        places = {str(tensor.device) for tensor in self.tensors}
        if len(places) > 1:
            raise ValueError(f"tensors must be on one device, got {sorted(places)}; give device=")
        self.n = lengths.pop()
        self.batch_size = checks.integer("batch_size", batch_size)
        self.shuffle = checks.flag("shuffle", shuffle)
        self.seed = checks.integer("seed", seed, low=0)
        self.augment = as_augmentations(augment)
        self.normalize = None if normalize is None else Normalize(normalize, self.tensors[0])
        self.drop_last = checks.flag("drop_last", drop_last)
        _check_length(self)
        self.epoch = 0
        self.rank, self.parts = 0, 1

    def __len__(self) -> int:
        """Return the number of batches."""
        whole = self.n / self.batch_size
        return math.floor(whole) if self.drop_last else math.ceil(whole)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration has."""
        self.epoch = epoch

    def again(self, batch_size: int | None = None, seed: int | None = None) -> Self:
        """Return a loader of the very same tensors, in batches of another size or order.

        Args:
            batch_size: samples in a batch; None leaves it.
            seed: of the order and of what augmentation draws; None leaves it.

        >>> loader = InMemoryLoader(torch.arange(5), batch_size=2).again(batch_size=3)
        >>> [batch[0].tolist() for batch in loader]
        [[0, 1, 2], [3, 4]]
        """
        other = copy(self)
        if batch_size is not None:
            other.batch_size = checks.integer("batch_size", batch_size)
        if seed is not None:
            other.seed = checks.integer("seed", seed, low=0)
        _check_length(other)
        other.epoch = 0
        return other

    def part(self, rank: int, parts: int) -> Self:
        """Return the loader of one of several processes, which share batches `parts` as large.

        Batch k is part `rank` of the batch k of all, whose samples and augmentation are those that
        one process would have at that batch size. Augmentation is for the whole batch, of which
        the part is taken.

        Args:
            rank: number of the part, from 0.
            parts: how many there are.

        >>> loader = InMemoryLoader(torch.arange(5), batch_size=1).part(1, parts=2)
        >>> [batch[0].tolist() for batch in loader], loader.batch_size, loader.fills_in(2)
        ([[1], [3], [4]], 2, True)
        """
        other = self.again(self.batch_size * parts)
        other.rank, other.parts = rank, parts
        return other

    def fills_in(self, k: int) -> bool:
        """Tell whether batch `k` is a sample of another part, because nothing is left for this."""
        return min(self.batch_size, self.n - k * self.batch_size) <= self.rank

    def order(self, epoch: int) -> Tensor:
        """Return the indices of all samples in the order of `epoch`.

        >>> loader = InMemoryLoader(torch.arange(6), shuffle=True, seed=1)
        >>> torch.equal(loader.order(3), loader.order(3))
        True
        """
        return permutation(self.n, self.seed, epoch) if self.shuffle else torch.arange(self.n)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches of the chosen epoch."""
        return self.batches()

    def batches(self, first: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches of the chosen epoch from number `first` on.

        >>> loader = InMemoryLoader(torch.arange(5), batch_size=2)
        >>> [batch[0].tolist() for batch in loader.batches(first=1)]
        [[2, 3], [4]]
        """
        if not self.augment:
            return self._blocks(first)
        whole = self._augmented(self._all()._blocks(first), first)  # noqa: SLF001 - of this class
        return whole if self.parts == 1 else (tuple(map(self._own, batch)) for batch in whole)

    def _all(self) -> Self:
        """Return the loader of which this is a part."""
        other = copy(self)
        other.rank, other.parts = 0, 1
        return other

    def _own(self, rows: Tensor) -> Tensor:
        """Return this part of the rows of a batch, or one to fill in where it has none."""
        own = rows.tensor_split(self.parts)[self.rank]
        return own if len(own) else rows[:1]

    def _order_of_part(self, end: int) -> Tensor:
        batches = torch.split(self.order(self.epoch)[:end], self.batch_size)
        return torch.cat([self._own(rows) for rows in batches])

    def _blocks(self, first: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield batches, small ones cut out of a block that was gathered at once."""
        size, end = self.batch_size, min(self.n, len(self) * self.batch_size)
        order = self.order(self.epoch) if self.shuffle else None
        if self.parts > 1:
            order = self._order_of_part(end)
            size, end = size // self.parts, len(order)
        if order is not None:
            order = order.to(self.tensors[0].device)
        step = size * self._together(size)
        for start in range(first * size, end, step):
            rows = slice(start, min(start + step, end))
            block = self._rows(rows if order is None else order[rows])
            if step == size:
                yield tuple(block)
            else:
                # A plain split would give views of one tensor: autograd takes a change of one of
                # them for a change of all.
                yield from zip(*(torch.unsafe_split(part, size) for part in block), strict=True)

    def _rows(self, chosen: Tensor | slice) -> list[Tensor]:
        """Return the chosen rows of each tensor, copied, for a model may write into its input."""
        if isinstance(chosen, slice):
            block = [tensor[chosen].clone() for tensor in self.tensors]
        else:
            block = [tensor.index_select(0, chosen) for tensor in self.tensors]
        if self.normalize is not None:
            block[0] = self.normalize(block[0])
        return block

    def _together(self, size: int) -> int:
        """Return how many batches of `size` samples are gathered at once.

        One where the others would begin at another place in memory than a tensor of their own: the
        last bit of what a kernel makes of them may depend on that, and on where a run resumed.
        """
        row = self._rows(slice(0, 1))
        sizes = [part.nbytes * size for part in row]
        aligned = ALIGNED.get(self.tensors[0].device.type, 512)
        # A gradient would go through the block, and only once.
        if any(size % aligned for size in sizes) or any(part.requires_grad for part in row):
            return 1
        return max(1, BLOCK // max(1, sum(sizes)))

    def _augmented(
        self, batches: Iterator[tuple[Tensor, ...]], first: int
    ) -> Iterator[tuple[Tensor, ...]]:
        generator = torch.Generator(self.tensors[0].device)
        augment = chained(self.augment)
        seeds = batch_seeds(len(self), self.seed, self.epoch)
        for seed, (x, *rest) in zip(seeds[first:], batches, strict=True):
            yield augment(x, generator.manual_seed(seed)), *rest


def _check_length(loader: InMemoryLoader) -> None:
    if not len(loader):
        raise ValueError(
            f"drop_last=True leaves no batch of {loader.n} samples with "
            f"batch_size={loader.batch_size}"
        )
