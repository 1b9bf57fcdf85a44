"""MNIST as files for torchvision: unpacked from ONECYCLE_DATA, or noise of the same shape."""

import gzip
import os
from pathlib import Path

import numpy as np

NAMES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def unpacked(root: Path) -> bool:
    """Write the files that torchvision reads under `root`; return whether they are the real ones.

    `ONECYCLE_DATA` names a folder with `MNIST/raw/*-ubyte`, gzipped or not.
    """
    given = Path(os.environ.get("ONECYCLE_DATA", "/nowhere")) / "MNIST" / "raw"
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    real = given.is_dir()
    for name in NAMES:
        target, source = folder / f"{name}-ubyte", given / f"{name}-ubyte"
        if not real:
            target.write_bytes(_noise(name))
        elif source.exists():
            target.write_bytes(source.read_bytes())
        else:
            target.write_bytes(gzip.decompress(source.with_suffix(".gz").read_bytes()))
    return real


def _noise(name: str) -> bytes:
    """Return an IDX file of random bytes: a magic number, the shape, the values."""
    count = 60_000 if name.startswith("train") else 10_000
    shape = [count, 28, 28] if "images" in name else [count]
    high = 256 if "images" in name else 10
    header = np.array([0x0800 + len(shape), *shape], ">i4").tobytes()
    return header + np.random.default_rng(0).integers(0, high, shape, np.uint8).tobytes()
