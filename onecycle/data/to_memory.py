"""Reading a map-style data set into tensors, once, where that changes nothing but the speed."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from onecycle import batch as batches
from onecycle import display, generators, snapshot
from onecycle.data.datasets import Collate, workers_for

FEW = 8  # items that are read twice, at either end
READ = 64  # items in a batch that is read
NAMES = ("train", "valid")
Tensors = tuple[Tensor, ...]


def tensors_of(
    sets: Sequence[Any],
    num_workers: int | None,
    device: torch.device | str | None,
    collate_fn: Collate | None,
) -> list[Tensors]:
    """Return the items of each data set as tensors on `device`; see `DataLoaders.from_datasets`.

    Raises:
        TypeError, ValueError: they cannot be kept, or would not be the same at every reading.
    """
    place = torch.device("cpu") if device is None else batches.as_device(device)
    collate = collate_fn or default_collate
    with ExitStack() as stack:
        for dataset in sets:
            stack.enter_context(snapshot.rng_preserved(dataset))
        firsts = []
        for name, dataset in zip(NAMES, sets, strict=False):
            firsts.append(_item(name, dataset, 0, collate))
            _check_again(name, dataset, collate)
        _check_size(sets, firsts, place)
        return [
            _read(name, dataset, first, place, workers_for(dataset, num_workers), collate)
            for name, dataset, first in zip(NAMES, sets, firsts, strict=False)
        ]


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a device, None where that cannot be known."""
    if device.type != "cpu":
        info = getattr(torch.get_device_module(device), "mem_get_info", None)
        return None if info is None else int(info(device)[0])
    found = [1024 * kib for kib in _numbers("/proc/meminfo", r"^MemAvailable: +(\d+) kB")]
    # What a container may have is often less than what the machine has left.
    return min([*found, *_numbers("/sys/fs/cgroup/memory.max", r"^(\d+)$")], default=None)


def _numbers(path: str, pattern: str) -> list[int]:
    """Return the numbers that a file of the system's has, none where there is no such file."""
    try:
        return [int(number) for number in re.findall(pattern, Path(path).read_text(), re.MULTILINE)]
    except OSError:
        return []


def _item(name: str, dataset: Any, i: int, collate: Collate) -> Tensors:
    """Return an item as a batch of one."""
    return _tensors(name, collate([dataset[i]]), 1)


def _tensors(name: str, batch: Any, n: int) -> Tensors:
    """Return the tensors of a batch of `n` items."""
    parts = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    fit = [isinstance(part, Tensor) and part.shape[:1] == (n,) for part in parts]
    if not parts or not all(fit):
        raise TypeError(
            f"in_memory: an item of {name} must be numbers, arrays or tensors, one or a tuple of "
            f"them; {n} of them make {batches.shape(batch)}; use in_memory=False"
        )
    return parts


def _check_again(name: str, dataset: Any, collate: Collate) -> None:
    """Refuse items that are not the same when they are read again.

    Nor may reading them draw numbers: what is drawn may change an item only now and then. A data
    set that seeds a generator by the item leaves it in one state, however often it is read.
    """
    held = generators.found(dataset)
    n = len(dataset)
    for i in sorted({*range(min(FEW, n)), *range(max(0, n - FEW), n)}):
        read = [(_item(name, dataset, i, collate), generators.states(held)) for _ in range(2)]
        (one, before), (two, after) = read
        if not (_same(one, two) and _same(before, after)):
            raise ValueError(
                f"in_memory: {name}[{i}] is another one, or draws random numbers, when it is read "
                "again; take the random transforms out of the data set and give augment= instead, "
                "or use in_memory=False"
            )


def _check_size(sets: Sequence[Any], firsts: Sequence[Tensors], device: torch.device) -> None:
    """Refuse what would not fit."""
    sizes = [sum(part.nbytes for part in first) for first in firsts]
    needed = sum(size * len(dataset) for size, dataset in zip(sizes, sets, strict=True))
    free = free_memory(device)
    if free is not None and needed > free:
        raise ValueError(
            f"in_memory: the items need {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free on "
            f"{device}; use in_memory=False"
        )


def _read(
    name: str, dataset: Any, first: Tensors, device: torch.device, workers: int, collate: Collate
) -> Tensors:
    """Return all items, each read once."""
    n = len(dataset)
    whole = tuple(
        torch.empty((n, *part.shape[1:]), dtype=part.dtype, device=device) for part in first
    )
    loader: DataLoader[Any] = DataLoader(dataset, READ, num_workers=workers, collate_fn=collate)
    done = 0
    # Closed at once, or an error's traceback would keep the workers.
    with closing(_shown(loader, f"reading {name}", len(loader))) as reading:
        while done < n:
            size = min(READ, n - done)
            try:
                parts = _tensors(name, next(reading), size)
                for kept, part in zip(whole, parts, strict=True):
                    _put(kept[done : done + size], part)
            except Exception as error:
                unlike = _first_unlike(name, dataset, range(done, done + size), first, collate)
                if unlike is None:
                    raise
                # Its traceback is in a cycle, and workers that end in one are waited for in vain.
                error.__traceback__ = None
                raise ValueError(
                    f"in_memory: {name}[{unlike[0]}] has the shapes {unlike[1]}, {name}[0] has "
                    f"{_shapes(first)}; bring all items to one shape, or use in_memory=False"
                ) from error
            done += size
    return whole


def _put(kept: Tensor, part: Tensor) -> None:
    if kept.shape != part.shape or kept.dtype != part.dtype:
        raise ValueError(f"in_memory: {part.dtype} {tuple(part.shape)} among {kept.dtype}")
    kept.copy_(part.detach())


def _first_unlike(
    name: str, dataset: Any, rows: Iterable[int], first: Tensors, collate: Collate
) -> tuple[int, str] | None:
    """Return the first item that is of another shape or type than the first of all, and those."""
    for i in rows:
        shapes = _shapes(_item(name, dataset, i, collate))
        if shapes != _shapes(first):
            return i, shapes
    return None


def _shapes(item: Tensors) -> str:
    return ", ".join(f"{tuple(part.shape[1:])} {part.dtype}" for part in item)


def _shown(loader: Iterable[Any], label: str, total: int) -> Generator[Any, None, None]:
    """Yield what `loader` does, with a bar where progress is shown."""
    surface = display.surface()
    due = time.monotonic() + surface.refresh
    surface.open(label, total)
    try:
        for done, batch in enumerate(loader):
            if time.monotonic() >= due:
                surface.at(done)
                due = time.monotonic() + surface.refresh
            yield batch
    finally:
        surface.end()


def _same(one: Any, two: Any) -> bool:
    """Tell whether two nested values are equal bit for bit."""
    if isinstance(one, Tensor):
        alike = one.shape == two.shape and one.dtype == two.dtype
        return alike and torch.equal(_bytes(one), _bytes(two))
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(_same(one[key], two[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(two) and all(map(_same, one, two))
    return bool(one == two)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)
