"""Each of several processes gets its part of every batch, so that together they see one of all.

With N processes at a batch size b a batch of all has N b samples, those that one process at N b
would see, and process r has the r-th part of them. The last batch may have fewer; where one process
would have none, it gets a sample of another one to fill in, which does not count: `fills_in`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import BatchSampler as TorchBatchSampler
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, SequentialSampler

from onecycle.data.in_memory import InMemoryLoader
from onecycle.distributed import World


def part_of(loader: Any, world: World, name: str) -> Any:
    """Return this process's part of `loader`.

    Args:
        loader: an `InMemoryLoader`, a DataLoader of a data set that is read by number, or a
            sequence of batches. Of a part it is the part itself.
        world: the processes.
        name: of the loader, for an error.

    Raises:
        ValueError: a stream, of which nobody can know which part is whose.

    >>> part_of([1, 2, 3], World(), "train")
    [1, 2, 3]
    """
    if world.size == 1 or loader is None or is_part(loader):
        return loader
    if isinstance(loader, InMemoryLoader):
        return loader.part(world.rank, world.size)
    if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
        if repeats(loader) and name == "train":
            return loader
        if loader.batch_sampler is not None:
            return _loader_of_part(loader, world)
    elif hasattr(loader, "__getitem__") and hasattr(loader, "__len__"):
        return SequencePart(loader, world.rank, world.size)
    raise ValueError(
        f"{name} is a {type(loader).__name__}, which cannot be divided among {world.size} "
        "processes: give a DataLoader of a map-style data set or DataLoaders.from_tensors, or "
        "let it yield this process's own batches and say DataLoaders(..., sharded=True)"
    )


def is_part(loader: Any) -> bool:
    """Tell whether a loader gives a part of each batch already."""
    return getattr(_divider(loader), "parts", 1) > 1


def repeats(loader: Any) -> bool:
    """Tell whether samples come twice, as torch's DistributedSampler has it for even parts."""
    return isinstance(getattr(loader, "sampler", None), DistributedSampler)


def fills_in(loader: Any, k: int) -> bool:
    """Tell whether batch `k` is there only so that all processes have equally many.

    >>> part = SequencePart(["a", "b", "c"], rank=1, parts=2)
    >>> list(part), [fills_in(part, k) for k in range(2)]
    (['b', 'c'], [False, True])
    """
    divider = _divider(loader)
    return is_part(loader) and bool(divider.fills_in(k))


def _divider(loader: Any) -> Any:
    sampler = getattr(loader, "batch_sampler", None)
    return loader if sampler is None else sampler  # not by `or`: the length may be unknown


class SequencePart:
    """Every `parts`-th batch of a sequence of batches."""

    def __init__(self, batches: Sequence[Any], rank: int, parts: int) -> None:
        self.loader, self.rank, self.parts = batches, rank, parts

    def __len__(self) -> int:
        """Return the number of batches."""
        return math.ceil(len(self.loader) / self.parts)

    def __getitem__(self, k: int) -> Any:
        """Return batch `k` of this process."""
        if k >= len(self):
            raise IndexError(k)
        return self.loader[min(k * self.parts + self.rank, len(self.loader) - 1)]

    def fills_in(self, k: int) -> bool:
        """See `fills_in` of the module."""
        return k * self.parts + self.rank >= len(self.loader)


class PartSampler:
    """The part of one process of each batch: `parts` batches of a sampler, joined and divided.

    The first process draws the order, whatever it is drawn from, and tells the others.

    Args:
        batches: yields lists of indices; it has a length.
        rank: number of the part.
        parts: how many there are.
        first: returns what its argument returns in the first process.

    >>> sampler = PartSampler([[0, 1], [2, 3], [4]], rank=1, parts=2, first=lambda make: make())
    >>> list(sampler)
    [[2, 3], [4]]
    >>> sampler.fills_in(1)
    True
    """

    def __init__(
        self, batches: Any, rank: int, parts: int, first: Callable[[Callable[[], Any]], Any]
    ) -> None:
        self.batch_sampler, self.rank, self.parts = batches, rank, parts
        self.batch_size = getattr(batches, "batch_size", 0) * parts or None
        self.drop_last = bool(getattr(batches, "drop_last", False))
        self.sampler = getattr(batches, "sampler", ())
        self._first = first
        self.samples: list[int] = []  # in each batch of all, of the latest pass

    def __len__(self) -> int:
        """Return the number of batches."""
        n = len(self.batch_sampler)
        return n // self.parts if self.drop_last else math.ceil(n / self.parts)

    def __iter__(self) -> Iterator[list[Any]]:
        """Yield the indices of this part of each batch."""
        return PartIterator(self, iter(self.batch_sampler))

    def joined(self, batches: Iterable[Any]) -> list[list[Any]]:
        """Return the indices of each batch of all, as the first process draws them."""
        drawn = self._first(lambda: [list(batch) for batch in batches])
        groups = [drawn[i : i + self.parts] for i in range(0, len(drawn), self.parts)]
        if self.drop_last and groups and len(groups[-1]) < self.parts:
            groups.pop()
        return [[index for batch in group for index in batch] for group in groups]

    def own(self, indices: list[Any]) -> list[Any]:
        """Return this part of a batch of all, or one to fill in where it has none."""
        own: list[Any] = divided(indices, self.rank, self.parts)
        return own or indices[:1]

    def fills_in(self, k: int) -> bool:
        """See `fills_in` of the module."""
        return self.samples[k] <= self.rank


class PartIterator:
    """One pass of a `PartSampler`, which a StatefulDataLoader can save and go on with.

    >>> sampler = PartSampler([[0, 1], [2, 3], [4]], rank=0, parts=2, first=lambda make: make())
    >>> batches = iter(sampler)
    >>> next(batches), batches.state_dict()
    ([0, 1], {'drawn': [[0, 1, 2, 3], [4]], 'taken': 1})
    """

    def __init__(self, sampler: PartSampler, batches: Iterator[Any]) -> None:
        self._sampler, self._batches = sampler, batches
        self._drawn: list[list[Any]] | None = None
        self._taken = 0

    def __iter__(self) -> PartIterator:
        """Return itself."""
        return self

    def __next__(self) -> list[Any]:
        """Return the indices of this part of the next batch."""
        if self._drawn is None:
            self._begin(self._sampler.joined(self._batches))
        drawn = self._drawn or []
        if self._taken == len(drawn):
            raise StopIteration
        self._taken += 1
        return self._sampler.own(drawn[self._taken - 1])

    def state_dict(self) -> dict[str, Any]:
        """Return the order of this pass, and how much of it was taken."""
        return {"drawn": self._drawn, "taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there."""
        self._taken = state["taken"]
        if state["drawn"] is not None:
            self._begin(state["drawn"])

    def _begin(self, drawn: list[list[Any]]) -> None:
        self._drawn, self._sampler.samples = drawn, list(map(len, drawn))


def divided(items: Sequence[Any], rank: int, parts: int) -> Any:
    """Return part `rank` of `items`, which are divided as evenly as can be.

    >>> [divided("abcde", r, 3) for r in range(3)]
    ['ab', 'cd', 'e']
    """
    least, more = divmod(len(items), parts)
    start = rank * least + min(rank, more)
    return items[start : start + least + (rank < more)]


def _loader_of_part(loader: DataLoader[Any], world: World) -> DataLoader[Any]:
    """Return a DataLoader that is `loader` in all but its batches."""
    sampler: Any = loader.batch_sampler
    if repeats(loader):
        # They would be counted twice.
        whole = SequentialSampler(range(len(loader.sampler.dataset)))  # type: ignore[attr-defined]
        sampler = TorchBatchSampler(whole, loader.batch_size or 1, drop_last=False)
    names = (
        *("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn"),
        *("multiprocessing_context", "generator", "prefetch_factor", "persistent_workers"),
    )
    options = {name: getattr(loader, name) for name in names}
    own = PartSampler(sampler, world.rank, world.size, world.first)
    # A StatefulDataLoader knows its place by itself.
    kind = type(loader) if hasattr(loader, "state_dict") else DataLoader
    return kind(loader.dataset, batch_sampler=own, **options)
