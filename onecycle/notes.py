"""Notes on errors: where they come from."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


def note(error: BaseException, text: str) -> None:
    """Add `text` to an error; Python 3.10 has no notes."""
    if sys.version_info >= (3, 11):
        error.add_note(text)


@contextmanager
def noted(text: str) -> Iterator[None]:
    """Add `text` to every error of the block."""
    try:
        yield
    except Exception as error:
        note(error, text)
        raise


def batches_of(loader: Iterable[Any], name: str) -> Iterator[Any]:
    """Yield what `loader` does; an error of its own says which data it is from."""
    reading = iter(loader)
    taken = 0
    while True:
        try:
            batch = next(reading)
        except StopIteration:
            return
        except Exception as error:
            note(error, f"raised by the {name} data, when batch {taken + 1} was read")
            raise
        taken += 1
        yield batch
