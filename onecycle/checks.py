"""Checks of arguments where they enter; an error names the argument, what came and what fits."""

import math
import operator
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any


def integer(name: str, value: Any, *, low: int = 1, high: int | None = None) -> int:
    """Return `value` as an int from `low` to `high`; a bool, a float or a string is refused."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if number < low:
        raise ValueError(f"{name} must be at least {low}, got {value!r}")
    if high is not None and number > high:
        raise ValueError(f"{name} must be at most {high}, got {value!r}")
    return number


def real(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
    allow_inf: bool = False,
) -> float:
    """Return `value` as a float within the interval; an open end is itself outside of it."""
    if isinstance(value, bool) or not (isinstance(value, Real) or _is_scalar_array(value)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = float(value)
    inside = (low < number if open_low else low <= number) and (
        number < high if open_high else number <= high
    )
    if not inside or (math.isinf(number) and not allow_inf):
        left = "(" if open_low or math.isinf(low) else "["
        right = ")" if open_high or (math.isinf(high) and not allow_inf) else "]"
        raise ValueError(f"{name} must lie in {left}{low:g}, {high:g}{right}, got {value!r}")
    return number


def positive(name: str, value: Any, *, allow_inf: bool = False) -> float:
    """Return `value` as a finite float above zero."""
    try:
        return real(name, value, low=0.0, open_low=True, allow_inf=allow_inf)
    except ValueError:
        finite = "" if allow_inf else "finite and "
        raise ValueError(f"{name} must be {finite}above 0, got {value!r}") from None


def flag(name: str, value: Any) -> bool:
    """Return `value` if it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def several(name: str, value: Any) -> tuple[Any, ...]:
    """Return the items of `value`; a string is not taken for its letters."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list, got {value!r}")
    return tuple(value)


def pair(name: str, value: Any, example: str) -> tuple[Any, Any]:
    """Return `value` as a tuple of two."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"{name} must be a pair such as {example}, got {value!r}")
    return value[0], value[1]


def choice(name: str, value: Any, options: Sequence[str]) -> str:
    """Return `value` if it is one of `options`."""
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")
    return str(value)


def _is_scalar_array(value: Any) -> bool:
    """Zero-dimensional tensors and arrays count as numbers; a learning rate often is one."""
    return getattr(value, "ndim", None) == 0 and hasattr(value, "__float__")
