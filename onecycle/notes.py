"""Notes on errors: where they come from."""

import sys
from collections.abc import Callable, Generator, Iterable, Iterator
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


def batches_of(
    loader: Iterable[Any], name: str, failed: Callable[[], object] = lambda: None
) -> Generator[Any, None, None]:
    """Yield what `loader` does; an error of its own says which data it is from.

    `failed` is called before such an error is raised.
    """
    reading = iter(loader)
    taken = 0
    while True:
        try:
            batch = next(reading)
        except StopIteration:
            return
        except Exception as error:
            note(error, f"raised by the {name} data, when batch {taken + 1} was read")
            failed()
            raise
        taken += 1
        yield batch
