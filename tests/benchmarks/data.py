"""How fast batches come: thousand samples a second on MNIST, in turns; more is better.

    ONECYCLE_DATA=FOLDER python tests/benchmarks/data.py [--sizes 16,64,256,1024,4096]

One epoch over the 60,000 images, shuffled, float32 when they arrive, and normalised (torchvision's
are not, which spares it some work); nothing else is done with them. Every figure is a whole epoch,
from `iter(loader)` to its end. "slices" is the loop by hand: a permutation, and `x[chosen],
y[chosen]`. Where ONECYCLE_DATA has no MNIST, bytes at random take its place, and it says so. Two
threads.
"""

import inspect
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from harness import chosen, machine, measured, parser, show, table
from mnist_files import unpacked
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from onecycle import DataLoaders

MEAN, STD = 0.1307, 0.3081
FOLDER = "ONECYCLE_BENCHMARK_FILES"  # tells the contenders' processes where the files are
# Whether images can be stored as bytes, and normalised batch by batch.
NORMALIZES = "normalize" in inspect.signature(DataLoaders.from_tensors).parameters


def torchvision_set(transform: Any = None) -> Any:
    """torchvision's MNIST, of the unpacked files."""
    from torchvision.datasets import MNIST

    return MNIST(os.environ[FOLDER], train=True, transform=transform)


@cache
def stored() -> tuple[Tensor, Tensor, Tensor]:
    """Images as bytes (N, 1, 28, 28), as normalised floats, and labels."""
    data = torchvision_set()
    images = data.data[:, None].contiguous()
    return images, normalised(images), data.targets


def normalised(images: Tensor) -> Tensor:
    """(pixel / 255 - mean) / std."""
    return images.float().mul_(1 / (255 * STD)).sub_(MEAN / STD)


# ---- contenders: what yields the batches of an epoch, for a batch size ---------------------------


def slices(size: int) -> Callable[[], Iterator[Any]]:
    """By hand, stored as floats."""
    _, x, y = stored()

    def epoch() -> Iterator[Any]:
        for chosen_ones in torch.randperm(len(x)).split(size):
            yield x[chosen_ones], y[chosen_ones]

    return epoch


def byte_slices(size: int) -> Callable[[], Iterator[Any]]:
    """By hand, stored as bytes."""
    x, _, y = stored()

    def epoch() -> Iterator[Any]:
        for chosen_ones in torch.randperm(len(x)).split(size):
            yield normalised(x[chosen_ones]), y[chosen_ones]

    return epoch


def onecycle(size: int) -> Iterable[Any]:
    """`DataLoaders.from_tensors`, stored as floats."""
    _, x, y = stored()
    return DataLoaders.from_tensors(x, y, batch_size=size).train


def onecycle_bytes(size: int) -> Iterable[Any]:
    """`DataLoaders.from_tensors(normalize=...)`, stored as bytes."""
    x, _, y = stored()
    options: dict[str, Any] = {"normalize": (MEAN, STD)}
    return DataLoaders.from_tensors(x, y, batch_size=size, **options).train


def tensor_data_set(size: int) -> Iterable[Any]:
    """torch's `DataLoader(TensorDataset(x, y))`."""
    _, x, y = stored()
    return DataLoader(TensorDataset(x, y), batch_size=size, shuffle=True)


def fastai(size: int) -> Iterable[Any]:
    """fastai's `DataLoaders.from_dsets` on the same data set, without workers, which are slower."""
    from fastai.data.core import DataLoaders as Fastai

    _, x, y = stored()
    data = TensorDataset(x, y)
    return Fastai.from_dsets(data, data, bs=size, num_workers=0, device=torch.device("cpu")).train


def torchvision(size: int, workers: int = 0) -> Iterable[Any]:
    """torchvision's data set with `ToTensor` alone, not normalised, through torch's DataLoader."""
    from torchvision.transforms import ToTensor

    data = torchvision_set(ToTensor())
    return DataLoader(data, batch_size=size, shuffle=True, num_workers=workers)


CONTENDERS: dict[str, Callable[[int], Any]] = {
    "slices": slices,
    "slices of bytes": byte_slices,
    "onecycle": onecycle,
    "onecycle (bytes)": onecycle_bytes,
    "DataLoader(TensorDataset)": tensor_data_set,
    "fastai": fastai,
    "torchvision": torchvision,
    "torchvision (2 workers)": partial(torchvision, workers=2),
}
NEEDS = {"fastai": "fastai", "torchvision": "torchvision", "torchvision (2 workers)": "torchvision"}
loader = cache(lambda name, size: CONTENDERS[name](size))


def thousands_a_second(name: str, size: int) -> float:
    """Read one epoch."""
    batches = loader(name, size)
    seen = 0
    start = time.perf_counter()
    for x, _ in batches() if callable(batches) else batches:
        seen += len(x)
    seconds = time.perf_counter() - start
    # fastai leaves a smaller last batch out.
    if x.dtype != torch.float32 or not 60_000 - size < seen <= 60_000:
        raise RuntimeError(f"{name}: {seen} samples of {x.dtype}")
    return seen / seconds / 1e3


def main() -> None:
    """Measure every batch size."""
    options = parser(__doc__, threads=2)
    options.add_argument("--sizes", default="16,64,256,1024,4096", help="of the batches")
    args = options.parse_args()
    names = chosen(CONTENDERS, args.only, NEEDS)
    print(machine(args))
    if "onecycle (bytes)" in names and not NORMALIZES:
        print("onecycle (bytes) is left out: DataLoaders.from_tensors has no normalize here")
        names.remove("onecycle (bytes)")
    with tempfile.TemporaryDirectory() as folder:
        if not unpacked(Path(folder)):
            print("ONECYCLE_DATA has no MNIST: random bytes of its shape instead")
        os.environ[FOLDER] = folder
        for size in map(int, args.sizes.split(",")):
            contenders = {name: partial(thousands_a_second, name, size) for name in names}
            runs = measured(contenders, args.rounds, args.threads)
            show(f"batch {size}: thousand samples a second", table(runs, "thousand/s", "slices"))


if __name__ == "__main__":
    main()
