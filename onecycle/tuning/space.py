"""What `Learner.find` searches: for each name an interval of numbers, or choices."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onecycle import checks

DECADE = 10.0  # from an interval's low to its high; one as wide is searched by its logarithm


@dataclass(frozen=True)
class Interval:
    """All numbers from `low` to `high`, by their logarithm where that is a decade or more.

    >>> Interval(1e-4, 1e-2).at(0.5), Interval(0.0, 1.0).at(0.5)
    (0.001, 0.5)
    """

    low: float
    high: float

    @property
    def log(self) -> bool:
        """Whether equal ratios are equally likely, and not equal differences."""
        return self.low > 0 and self.high / self.low >= DECADE

    @property
    def ends(self) -> tuple[float, ...]:
        """What stands for all values, to be checked."""
        return self.low, self.high

    def at(self, share: float) -> float:
        """Return the value that `share` of the interval lies below."""
        ratio, width = self.high / self.low if self.log else 1.0, self.high - self.low
        value = self.low * ratio**share if self.log else self.low + width * share
        return min(self.high, max(self.low, value))


@dataclass(frozen=True)
class Choices:
    """Some values of any kind.

    >>> Choices([32, 64, 128]).at(0.5)
    64
    """

    values: Sequence[Any]

    @property
    def ends(self) -> Sequence[Any]:
        """What stands for all values, to be checked."""
        even = isinstance(self.values, range)
        return self.values[:: max(1, len(self.values) - 1)] if even else self.values

    def at(self, share: float) -> Any:
        """Return the value that `share` of the choices are before."""
        return self.values[min(len(self.values) - 1, int(share * len(self.values)))]


Space = Mapping[str, Interval | Choices]
Params = dict[str, Any]


def parse(space: Any) -> dict[str, Interval | Choices]:
    """Return a space as it was given, by name: (low, high) is an interval, a list choices.

    Raises:
        ValueError, TypeError: no dict, an empty part, or a part that is neither of the two.

    >>> parse({"wd": [0, 0.1], "lr": (1e-3, 1e-1)})
    {'wd': Choices(values=[0, 0.1]), 'lr': Interval(low=0.001, high=0.1)}
    """
    if not isinstance(space, Mapping):
        raise TypeError(f"space must be a dict of name to (low, high) or a list, got {space!r}")
    if not space:
        raise ValueError('space must hold at least one name, such as {"max_lr": (1e-4, 1e-1)}')
    return {_name(name): _part(f"space[{name!r}]", given) for name, given in space.items()}


def draw(space: Space, n: int, seed: int) -> list[Params]:
    """Return at most `n` configurations, spread evenly, which depend on `seed` alone.

    A space of choices alone gives each combination once: all of them where they are no more than
    `n`. Else each interval is cut into `n` parts of which every configuration gets another one, and
    choices come equally often: a Latin hypercube (McKay, Beckman and Conover, 1979).

    >>> draw({"wd": Choices([0, 1]), "size": Choices([8])}, n=9, seed=0)
    [{'wd': 0, 'size': 8}, {'wd': 1, 'size': 8}]
    """
    chance = random.Random(seed)
    choices = {name: part.values for name, part in space.items() if isinstance(part, Choices)}
    if len(choices) == len(space):
        size = math.prod(map(len, choices.values()))
        picked: Iterable[int] = range(size) if size <= n else chance.sample(range(size), n)
        return [_combination(choices, number) for number in picked]
    columns = {name: _column(part, n, chance) for name, part in space.items()}
    return [{name: column[i] for name, column in columns.items()} for i in range(n)]


def described(params: Mapping[str, Any]) -> str:
    """Return a configuration in a line.

    >>> described({"max_lr": 0.0123456, "batch_size": 64})
    'max_lr=0.0123, batch_size=64'
    """
    return ", ".join(f"{name}={shown(value)}" for name, value in params.items())


def shown(value: Any) -> str:
    """Return a value as it is shown."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def epochs_of(n: int) -> str:
    """Return a number of epochs in words.

    >>> epochs_of(1), epochs_of(8)
    ('1 epoch', '8 epochs')
    """
    return f"{n} epoch" if n == 1 else f"{n} epochs"


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"space must be by names of arguments, got {name!r}")
    return name


def _part(label: str, given: Any) -> Interval | Choices:
    if isinstance(given, tuple):
        return _interval(label, given)
    values = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise TypeError(
            f"{label} must be (low, high) or a list of choices, got {given!r}; one value alone is "
            "a list of one"
        )
    if not len(values):
        raise ValueError(f"{label} must hold at least one choice, got {given!r}")
    rises = not isinstance(values, range) or values.step > 0
    return Choices(values if rises else values[::-1])


def _interval(label: str, given: tuple[Any, ...]) -> Interval:
    if len(given) != 2:
        raise ValueError(f"{label} must be (low, high), got {given!r}; choices are a list")
    if all(isinstance(end, int) for end in given):
        raise ValueError(
            f"{label} must say which numbers are meant, got {given!r}: (0.0, 1.0) is all in "
            "between, range(0, 2) whole ones, a list these alone"
        )
    low, high = (checks.real(label, end) for end in given)
    if not low < high:
        raise ValueError(f"{label} must rise from low to high, got {given!r}")
    return Interval(low, high)


def _combination(choices: dict[str, Sequence[Any]], number: int) -> Params:
    """Return one combination by its number, the last name changing fastest."""
    params: Params = {}
    for name in reversed(choices):
        number, i = divmod(number, len(choices[name]))
        params[name] = choices[name][i]
    return {name: params[name] for name in choices}


def _column(part: Interval | Choices, n: int, chance: random.Random) -> list[Any]:
    shares = [(k + chance.random()) / n for k in range(n)]
    chance.shuffle(shares)
    return [part.at(share) for share in shares]
