"""DataLoaders: the training and the validation data of a run, any iterables of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from onecycle import checks
from onecycle.batch import as_tensor
from onecycle.data.augment import Augment, as_augmentations
from onecycle.data.datasets import check_dataset, loaders_of
from onecycle.data.in_memory import InMemoryLoader
from onecycle.data.reading import Reader
from onecycle.data.sharding import part_of
from onecycle.data.to_memory import tensors_of
from onecycle.distributed import World


class DataLoaders:
    """A pair of training and validation data.

    Args:
        train: an iterable of batches that can be iterated again for each epoch, such as a torch
            `DataLoader`.
        valid: the same for validation, or None.
        steps_per_epoch: batches in an epoch. None takes `len(train)`. With a number, an epoch is
            that many batches, and the next epoch goes on where the last one stopped, beginning
            again at the end.
        sharded: where several processes train together, each yields batches of its own already.

    Raises:
        TypeError: something that cannot be iterated, or only once.
        ValueError: `train` is empty, or has no length and `steps_per_epoch` is not given.

    >>> data = DataLoaders([(torch.zeros(4, 2), torch.zeros(4))] * 3)
    >>> data.steps_per_epoch
    3
    """

    def __init__(
        self,
        train: Iterable[Any],
        valid: Iterable[Any] | None = None,
        *,
        steps_per_epoch: int | None = None,
        sharded: bool = False,
    ) -> None:
        check_loader("train", train, again=True)
        if valid is not None:
            check_loader("valid", valid, again=True)
        if steps_per_epoch is None:
            _length("train", train)
        else:
            checks.integer("steps_per_epoch", steps_per_epoch)
        self.train = train
        self.valid = valid
        self.sharded = checks.flag("sharded", sharded)
        self._steps = steps_per_epoch
        self._stream = Reader(self, steps_per_epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Training batches in an epoch, of the `train` that is there now."""
        return _length("train", self.train) if self._steps is None else self._steps

    def reader(self, *, aside: bool = False, first: int = 0) -> Reader:
        """Return what gives the batches of an epoch, for one run.

        With `steps_per_epoch` given a run goes on in the stream where the last one stopped;
        `aside` reads from its beginning, or from pass `first`, and leaves that place as it is.
        """
        if aside or self._steps is None:
            return Reader(self, self._steps, first)
        return self._stream

    def part(self, world: World) -> DataLoaders:
        """Return what this process has of the data, see `onecycle.data.sharding`; alone it is all.

        Raises:
            ValueError: data that cannot be divided.
        """
        if world.size == 1 or self.sharded:
            return self
        train, valid = part_of(self.train, world, "train"), part_of(self.valid, world, "valid")
        return DataLoaders(train, valid, steps_per_epoch=self._steps, sharded=True)

    def again(self, batch_size: int | None = None, reseed: int = 0) -> DataLoaders:
        """Return the same data, to be read from its beginning; what is here stays where it is.

        Args:
            batch_size: of the training data, where they are in memory; None leaves it.
            reseed: added to the seed of training data in memory; other data keep their order.

        Raises:
            ValueError: another batch size of data that are not in memory, or whose epochs are a
                given number of batches.

        >>> data = DataLoaders.from_tensors(torch.zeros(10, 2), torch.zeros(10), batch_size=2)
        >>> data.again(batch_size=5).steps_per_epoch
        2
        """
        train = self.train
        if isinstance(train, InMemoryLoader):
            train = train.again(batch_size, train.seed + reseed)
        if batch_size is not None and (train is self.train or self._steps is not None):
            raise ValueError(
                "batch_size: only data in memory, without steps_per_epoch, can be cut into other "
                "batches; see DataLoaders.from_tensors"
            )
        return DataLoaders(train, self.valid, steps_per_epoch=self._steps, sharded=self.sharded)

    @classmethod
    def from_tensors(
        cls,
        x: Any,
        y: Any,
        valid: tuple[Any, Any] | float | None = None,
        batch_size: int = 64,
        device: torch.device | str | None = None,
        seed: int = 0,
        *,
        augment: Augment = (),
        normalize: Any = None,
        drop_last: bool = False,
    ) -> DataLoaders:
        """Return in-memory loaders of inputs `x` and targets `y`, training batches shuffled.

        Args:
            x: tensor or array (N, ...).
            y: tensor or array (N, ...).
            valid: a pair (x, y), a share of the samples in (0, 1) to be drawn at random, or None.
            batch_size: samples in a batch.
            device: where the tensors are kept; None leaves them where they are, and the Learner
                moves batches.
            seed: of the order, of the draw and of the augmentation.
            augment: one or several functions of a batch of inputs, for training only; see
                `onecycle.data.augment`.
            normalize: (mean, std) of the inputs, for training and validation; see `InMemoryLoader`.
            drop_last: leave a smaller last batch out, in training only.

        Raises:
            ValueError, TypeError: an argument out of its range, lengths that differ, or an empty
            part.

        >>> data = DataLoaders.from_tensors(torch.zeros(10, 2), torch.zeros(10), valid=0.2)
        >>> data.train.n, data.valid.n
        (8, 2)
        """
        x, y = as_tensor(x, "x"), as_tensor(y, "y")
        if valid is not None and not isinstance(valid, (tuple, list)):
            whole = InMemoryLoader(x, y, shuffle=True, seed=seed)
            share = checks.real("valid", valid, low=0.0, high=1.0, open_low=True, open_high=True)
            n_valid = round(share * whole.n)
            if not 0 < n_valid < whole.n:
                raise ValueError(f"valid={valid!r} of {whole.n} samples leaves one part empty")
            held_out, rest = torch.split(whole.order(0), [n_valid, whole.n - n_valid])
            valid = _pick(whole.tensors, held_out)
            x, y = _pick(whole.tensors, rest)
        elif valid is not None:
            pair = checks.pair("valid", valid, "(inputs, targets)")
            valid = as_tensor(pair[0], "valid"), as_tensor(pair[1], "valid")
        options: dict[str, Any] = {
            "batch_size": batch_size,
            "device": device,
            "normalize": normalize,
        }
        training: dict[str, Any] = {"shuffle": True, "seed": seed, "drop_last": drop_last}
        train = InMemoryLoader(x, y, augment=augment, **training, **options)
        return cls(train, None if valid is None else InMemoryLoader(*valid, **options))

    @classmethod
    def from_datasets(
        cls,
        train: Any,
        valid: Any = None,
        batch_size: int = 64,
        *,
        in_memory: bool = False,
        num_workers: int | None = None,
        device: torch.device | str | None = None,
        seed: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        augment: Augment = (),
        normalize: Any = None,
        drop_last: bool = False,
    ) -> DataLoaders:
        """Return loaders of map-style data sets, training batches shuffled.

        The order is a function of (seed, epoch), the same with workers, without them and in memory.
        Batches are pinned where they go to a GPU. Workers read ahead; they are new in each epoch,
        because what a data set draws in one that persists could not be resumed.

        Args:
            train: anything with `__getitem__` and `__len__`.
            valid: the same, or None.
            batch_size: samples in a batch.
            in_memory: read every item once, now, and make `InMemoryLoader`s of them.
            num_workers: processes that read. None is as many as CPUs may be used, at most 8; and
                none where there is one CPU, where the data set is tensors, or where the platform
                does not fork. What a data set draws depends on it, so give a number where a run
                must be the same on another machine.
            device: where the tensors are kept that are read into memory, None is the CPU; else
                where batches will go, None is the default device.
            seed: of the order, and of what workers and augmentation draw.
            collate_fn: makes a batch of a list of items, as in torch's `DataLoader`.
            augment: as in `from_tensors`; with `in_memory` only.
            normalize: as in `from_tensors`; with `in_memory` only.
            drop_last: leave a smaller last batch out, in training only.

        Raises:
            TypeError, ValueError: no data set, an argument out of its range; and with `in_memory`
            items that differ when they are read again, in shape or kind from the first, or that
            need more memory than is free.

        >>> items = torch.utils.data.TensorDataset(torch.arange(6.0), torch.arange(6))
        >>> slow = DataLoaders.from_datasets(items, batch_size=4)
        >>> fast = DataLoaders.from_datasets(items, batch_size=4, in_memory=True)
        >>> [torch.equal(a[0], b[0]) for a, b in zip(slow.train, fast.train)]
        [True, True]
        """
        sets = [check_dataset("train", train)]
        if valid is not None:
            sets.append(check_dataset("valid", valid))
        checks.integer("batch_size", batch_size)
        checks.integer("seed", seed, low=0)
        if collate_fn is not None and not callable(collate_fn):
            raise TypeError(f"collate_fn must be a function of a list of items, got {collate_fn!r}")
        augment = as_augmentations(augment)  # before anything is read
        checks.flag("drop_last", drop_last)
        options: dict[str, Any]
        if not checks.flag("in_memory", in_memory):
            if normalize is not None or augment:
                raise ValueError(
                    "augment and normalize need in_memory=True; without it the data set's own "
                    "transforms do that"
                )
            options = {"num_workers": num_workers, "collate_fn": collate_fn, "drop_last": drop_last}
            return cls(*loaders_of(sets, batch_size, device, seed, **options))
        first, *others = tensors_of(sets, num_workers, device, collate_fn)
        options = {"batch_size": batch_size, "normalize": normalize}
        training: dict[str, Any] = {"shuffle": True, "seed": seed, "drop_last": drop_last}
        whole = InMemoryLoader(*first, augment=augment, **training, **options)
        return cls(whole, *(InMemoryLoader(*tensors, **options) for tensors in others))


def as_loaders(data: Any) -> DataLoaders:
    """Return `data`, or DataLoaders of a pair (train, valid).

    Raises:
        TypeError: neither of them.
    """
    if isinstance(data, DataLoaders):
        return data
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise TypeError(
            f"data must be DataLoaders or a pair (train, valid), got {type(data).__name__}; "
            "without validation data give (train, None)"
        )
    return DataLoaders(*data)


def _pick(tensors: tuple[Tensor, ...], chosen: Tensor) -> tuple[Tensor, Tensor]:
    x, y = (tensor[chosen.to(tensor.device)] for tensor in tensors)
    return x, y


def _length(name: str, data: Iterable[Any]) -> int:
    """Return the number of batches, at least one."""
    try:
        length = len(data)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(
            f"{name} has no length: give the number of batches in an epoch, "
            "DataLoaders(train, valid, steps_per_epoch=...)"
        ) from None
    if length == 0:
        raise ValueError(f"{name} is empty: it must yield at least one batch")
    return length


def _is_empty(data: Iterable[Any]) -> bool:
    """Tell whether `data` says that it has no batch; one that does not know its length may have."""
    try:
        return len(data) == 0  # type: ignore[arg-type]
    except TypeError:
        return False


def check_loader(name: str, data: Any, *, again: bool = False) -> None:
    """Refuse what is no iterable of batches, or not one for `again` and again; say what to give."""
    pair = isinstance(data, tuple) and len(data) > 0 and _is_array(data[0])
    if isinstance(data, (Tensor, np.ndarray, str)) or hasattr(data, "to_numpy") or pair:
        kind = "a pair of arrays" if pair else f"one {type(data).__name__}"
        raise TypeError(
            f"{name} must be an iterable of batches, got {kind}; see DataLoaders.from_tensors"
        )
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise TypeError(
            f"{name} must be an iterable of batches, got the data set {type(data).__name__}: "
            "wrap it in torch.utils.data.DataLoader"
        )
    if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise TypeError(f"{name} must be an iterable of batches, got {data!r}")
    # A class of the user's may start anew in __iter__ and return itself; a generator cannot.
    if again and isinstance(data, Iterator) and type(data).__module__ in ("builtins", "itertools"):
        raise TypeError(
            f"{name} can be read only once ({type(data).__name__}): give a list, a DataLoader "
            "or an object whose __iter__ starts anew"
        )
    if _is_empty(data):
        raise ValueError(f"{name} is empty: it must yield at least one batch")


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray)) or hasattr(value, "to_numpy")
