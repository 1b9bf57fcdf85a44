"""Built-in data sets: digits ships with the package, the others come through torchvision.

`ONECYCLE_DATA` names a folder to read instead of downloading: torchvision's own layout
(`MNIST/raw`, `FashionMNIST/raw`, `cifar-10-batches-py`; the IDX files may be gzipped), or
`cifar10_jpg.tar.xz` with the images as `train/<class>/NNNN.jpg` and `test/<class>/NNNN.jpg`. It is
never written to: what must be unpacked or downloaded goes to `~/.cache/onecycle`, or to
`$XDG_CACHE_HOME/onecycle`.
"""

import contextlib
import gzip
import io
import os
import shutil
import tarfile
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onecycle import checks, files
from onecycle.batch import as_device
from onecycle.data.augment import Augment, as_augmentations
from onecycle.data.loaders import DataLoaders

Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
CIFAR_JPG = "cifar10_jpg.tar.xz"


def digits(
    batch_size: int = 64,
    *,
    valid: float = 0.2,
    device: torch.device | str | None = None,
    seed: int = 0,
    augment: Augment = (),
) -> DataLoaders:
    """Return 1,797 real handwritten digits, 1 x 8 x 8, standardised; needs no network.

    Args:
        batch_size: samples in a batch.
        valid: share held out for validation.
        device: where the tensors are kept.
        seed: of the draw, of the order and of the augmentation.
        augment: functions of a batch, for training only, such as `data.random_crop(1)`.

    Source: Alpaydin and Kaynak, UCI Machine Learning Repository 1998, doi 10.24432/C50P49, CC BY
        4.0.

    >>> x, y = next(iter(digits().train))
    >>> x.shape, y.shape
    (torch.Size([64, 1, 8, 8]), torch.Size([64]))
    """
    with resources.files("onecycle.data").joinpath("digits.npz").open("rb") as file:
        arrays = np.load(io.BytesIO(file.read()))
    images = _standardised(arrays["images"][:, None], (4.884,), (6.017,), scale=1.0)
    labels = torch.from_numpy(arrays["labels"].astype(np.int64))
    return DataLoaders.from_tensors(
        images, labels, valid, batch_size, device, seed, augment=augment
    )


def mnist(
    batch_size: int = 64,
    *,
    device: torch.device | str | None = None,
    seed: int = 0,
    augment: Augment = (),
) -> DataLoaders:
    """Return MNIST, 60,000 and 10,000 images, 1 x 28 x 28, standardised."""
    read = partial(_vision_set, "MNIST", "MNIST/raw")
    return _loaders(read, (0.1307,), (0.3081,), batch_size, device, seed, augment)


def fashion_mnist(
    batch_size: int = 64,
    *,
    device: torch.device | str | None = None,
    seed: int = 0,
    augment: Augment = (),
) -> DataLoaders:
    """Return Fashion-MNIST, 60,000 and 10,000 images, 1 x 28 x 28, standardised."""
    read = partial(_vision_set, "FashionMNIST", "FashionMNIST/raw")
    return _loaders(read, (0.2860,), (0.3530,), batch_size, device, seed, augment)


def cifar10(
    batch_size: int = 64,
    *,
    device: torch.device | str | None = None,
    seed: int = 0,
    augment: Augment = (),
) -> DataLoaders:
    """Return CIFAR-10, 50,000 and 10,000 images, 3 x 32 x 32, standardised for each channel."""
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    folder = data_folder()
    read = partial(_vision_set, "CIFAR10", "cifar-10-batches-py")
    if folder and (folder / CIFAR_JPG).is_file():
        read = partial(_jpg_set, folder / CIFAR_JPG)
    return _loaders(read, mean, std, batch_size, device, seed, augment)


DATA_SETS: dict[str, Callable[..., DataLoaders]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
}


def data_folder() -> Path | None:
    """Return the folder that ONECYCLE_DATA names, or None."""
    name = os.environ.get("ONECYCLE_DATA")
    return Path(name) if name else None


def _vision_set(name: str, layout: str, train: bool) -> Arrays:
    """Return images (N, H, W) or (N, H, W, C) of bytes and labels, by torchvision."""
    from torchvision import datasets

    folder = data_folder()
    given = folder is not None and (folder / layout).is_dir()
    if folder is not None and given:
        root, zipped = folder, list((folder / layout).glob("*.gz"))
        if zipped:
            root = _unpacked(zipped, layout)
    else:
        root = _cache()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            data = getattr(datasets, name)(root, train=train, download=not given)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{name} is not in {folder or root} and could not be downloaded: "
            f"set ONECYCLE_DATA to a folder that holds {layout}, or use digits, which needs none"
        ) from error
    return np.asarray(data.data), np.asarray(data.targets)


def _unpacked(zipped: list[Path], layout: str) -> Path:
    """Unpack gzipped files into the cache, each once and whole; return the root there."""
    target = _cache() / "unpacked" / layout
    target.mkdir(parents=True, exist_ok=True)
    for source in zipped:
        if not (target / source.stem).exists():
            with gzip.open(source) as packed:
                files.write(target / source.stem, partial(shutil.copyfileobj, packed))
    return _cache() / "unpacked"


def _jpg_set(archive: Path, train: bool) -> Arrays:
    """Return one part of an archive of JPEG files; the decoded arrays are kept in the cache."""
    kept = _cache() / f"{archive.name}.{archive.stat().st_size}.npz"
    if not kept.exists():
        decoded: dict[str, Any] = _decoded(archive)
        files.write(kept, lambda file: np.savez(file, **decoded))
    arrays, part = np.load(kept), "train" if train else "test"
    return arrays[f"{part}_images"], arrays[f"{part}_labels"]


def _decoded(archive: Path) -> dict[str, np.ndarray[Any, Any]]:
    from PIL import Image

    images: dict[tuple[str, str], list[tuple[str, Any]]] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None and member.name.endswith(".jpg"):
                part, label, name = member.name.split("/")[-3:]
                pixels = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))
                images.setdefault((part, label), []).append((name, pixels))
    classes = sorted({label for _, label in images})
    arrays = {}
    for part in ("train", "test"):
        rows = [
            (name, classes.index(label), pixels)
            for label in classes
            for name, pixels in images[part, label]
        ]
        rows.sort(key=lambda row: row[:2])
        arrays[f"{part}_images"] = np.stack([pixels for _, _, pixels in rows])
        arrays[f"{part}_labels"] = np.array([label for _, label, _ in rows])
    return arrays


def _loaders(
    read: Callable[[bool], Arrays],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch_size: int,
    device: torch.device | str | None,
    seed: int,
    augment: Augment,
) -> DataLoaders:
    """Return the loaders of the images and labels that `read` gives for training and for test."""
    # Told before minutes of downloading and reading.
    checks.integer("batch_size", batch_size)
    checks.integer("seed", seed, low=0)
    augment = as_augmentations(augment)
    device = None if device is None else as_device(device)
    (x, y), (xv, yv) = (
        (
            _standardised(_channels_first(images), mean, std),
            torch.from_numpy(labels.astype(np.int64)),
        )
        for images, labels in map(read, (True, False))
    )
    return DataLoaders.from_tensors(x, y, (xv, yv), batch_size, device, seed, augment=augment)


def _channels_first(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)


def _standardised(
    images: np.ndarray[Any, Any],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    scale: float = 255.0,
) -> Tensor:
    """Return (pixel / scale - mean) / std for each channel, as float32."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).float().div_(scale)
    shape = (1, -1, 1, 1)
    return pixels.sub_(torch.tensor(mean).view(shape)).div_(torch.tensor(std).view(shape))


def _cache() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "onecycle"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
