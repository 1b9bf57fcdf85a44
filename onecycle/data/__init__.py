"""Data: loaders, the in-memory loader, augmentation and the built-in data sets."""

from onecycle.data.augment import cutout, flip, random_crop
from onecycle.data.builtin import DATA_SETS, cifar10, digits, fashion_mnist, mnist
from onecycle.data.in_memory import InMemoryLoader
from onecycle.data.loaders import DataLoaders

__all__ = [
    "DATA_SETS",
    "DataLoaders",
    "InMemoryLoader",
    "cifar10",
    "cutout",
    "digits",
    "fashion_mnist",
    "flip",
    "mnist",
    "random_crop",
]
