"""Data: loaders, the in-memory loader and the built-in data sets."""

from onecycle.data.builtin import DATA_SETS, cifar10, digits, fashion_mnist, mnist
from onecycle.data.in_memory import InMemoryLoader
from onecycle.data.loaders import DataLoaders

__all__ = [
    "DATA_SETS",
    "DataLoaders",
    "InMemoryLoader",
    "cifar10",
    "digits",
    "fashion_mnist",
    "mnist",
]
