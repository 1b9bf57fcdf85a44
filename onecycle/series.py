"""Numbers that are only ever appended, in the memory that the numbers need."""

from array import array
from collections.abc import Iterable

import numpy as np

from onecycle.smoothing import Array

BLOCK = 1 << 16  # a growing array leaves room for a sixteenth of this at most


class Series:
    """A sequence of floats that grows without being copied.

    Args:
        kind: "f" keeps 4 bytes of a number, "d" all 8.

    >>> series = Series("d")
    >>> series.extend([0.5])
    >>> len(series), series.values()
    (1, array([0.5]))
    """

    def __init__(self, kind: str = "d", values: Iterable[float] = ()) -> None:
        self._kind = kind
        self._full: list[Array] = []
        self._last: array[float] = array(kind)
        self.extend(values)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._full) * BLOCK + len(self._last)

    def extend(self, values: Iterable[float]) -> None:
        """Append several numbers."""
        self._last.extend(values)
        while len(self._last) >= BLOCK:
            self._full.append(np.array(self._last[:BLOCK]))
            self._last = self._last[BLOCK:]

    def values(self) -> Array:
        """Return all of them, as float64."""
        last = np.array(self._last, dtype=np.float64)
        return np.concatenate([*self._full, last]).astype(np.float64, copy=False)
