"""Loaders of map-style data sets, with defaults for this machine."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset

from onecycle import checks
from onecycle.batch import as_device
from onecycle.data.order import Shuffled

MOST_WORKERS = 8
Collate = Callable[[list[Any]], Any]


def loaders_of(
    sets: Sequence[Any],
    batch_size: int,
    device: torch.device | str | None,
    seed: int,
    *,
    num_workers: int | None,
    collate_fn: Collate | None,
    drop_last: bool,
) -> list[DataLoader[Any]]:
    """Return a loader of the first data set, shuffled, and of the others; see `from_datasets`."""
    pinned = as_device(device).type == "cuda"
    loaders: list[DataLoader[Any]] = []
    for dataset in sets:
        training = not loaders
        workers = workers_for(dataset, num_workers)
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size,
            sampler=Shuffled(len(dataset), seed) if training else None,
            # The seeds of the workers; a global generator would be drawn from otherwise.
            generator=torch.Generator().manual_seed(seed) if training else None,
            num_workers=workers,
            collate_fn=collate_fn,
            drop_last=drop_last and training,
            pin_memory=pinned,
        )
        loaders.append(loader)
    return loaders


def workers_for(dataset: Any, num_workers: int | None) -> int:
    """Return `num_workers`, or a number that fits data set and machine.

    >>> workers_for(TensorDataset(torch.zeros(3)), None)
    0
    """
    if num_workers is not None:
        return checks.integer("num_workers", num_workers, low=0)
    # Elsewhere a worker imports the script anew, which scripts must be written for.
    start = multiprocessing.get_start_method(allow_none=True)
    forks = (start or multiprocessing.get_all_start_methods()[0]) == "fork"
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if _of_tensors(dataset) or not forks or not cpus or cpus < 2:
        return 0
    return min(cpus, MOST_WORKERS)


def check_dataset(name: str, dataset: Any) -> Any:
    """Return `dataset` if items can be read from it by number.

    Raises:
        TypeError: it is a loader, a stream or nothing of the kind.
        ValueError: it is empty.
    """
    if isinstance(dataset, DataLoader):
        raise TypeError(f"{name} is a DataLoader already: DataLoaders(train, valid) takes it")
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            f"{name} is a stream, {type(dataset).__name__}: give DataLoaders a DataLoader of it, "
            "and steps_per_epoch where it has no length"
        )
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise TypeError(
            f"{name} must be a data set with __getitem__ and __len__, got {type(dataset).__name__}"
        )
    if len(dataset) == 0:
        raise ValueError(f"{name} is empty: it must have at least one item")
    return dataset


def _of_tensors(dataset: Any) -> bool:
    """Tell whether a data set is tensors in memory, whose items cost less than sending them."""
    if isinstance(dataset, ConcatDataset):
        return all(map(_of_tensors, dataset.datasets))
    if isinstance(dataset, Subset):
        return _of_tensors(dataset.dataset)
    return isinstance(dataset, (TensorDataset, Tensor))
