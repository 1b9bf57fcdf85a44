"""Schedules as plain values, so that a file can hold the plan of a run."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec

from onecycle import checks

Schedule = Callable[[float], float]
P = ParamSpec("P")
OWN = "function"  # what stands for a schedule that no builder of ours has made


def described(builder: Callable[P, Schedule]) -> Callable[P, Schedule]:
    """Let what `builder` returns remember the call that made it."""

    @functools.wraps(builder)
    def build(*args: P.args, **options: P.kwargs) -> Schedule:
        schedule = builder(*args, **options)
        vars(schedule)["made_by"] = functools.partial(builder, *args, **options)
        return schedule

    return build


def checked(name: str, value: Any) -> Schedule:
    """Return `value` if it can be a schedule; a class, such as torch's schedulers, cannot."""
    if not callable(value) or isinstance(value, type):
        raise TypeError(f"{name} must be a function of progress, got {value!r}")
    return value  # type: ignore[no-any-return]


def check_values(name: str, schedule: Schedule, **interval: Any) -> None:
    """Refuse a schedule whose first, middle or last value is no number of the interval.

    Args:
        name: what the message calls it.
        schedule: function of progress.
        interval: options of `checks.real`.

    Raises:
        ValueError, TypeError: it says at which progress, and whether a builder was not called.
    """
    for p in (0.0, 0.5, 1.0):
        try:
            checks.real(f"its value at progress {p}", schedule(p), **interval)
        except (ValueError, TypeError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            uncalled = hasattr(schedule, "__wrapped__")  # as builders are, and schedules are not
            hint = f"; is it {schedule.__name__}()?" if uncalled else ""
            raise kind(f"{name} must be a function of progress: {error}{hint}") from error


def describe(schedule: Any) -> dict[str, Any]:
    """Return name and arguments of the builder that made `schedule`, as strings and numbers.

    A function that no builder made is described by its name and some of its values, by which it can
    be told from another one, but not be made again.

    >>> from onecycle.schedules import linear
    >>> describe(linear(1.0, end=0.1))
    {'name': 'linear', 'start': 1.0, 'end': 0.1}
    """
    made_by = getattr(schedule, "made_by", None)
    if made_by is None:
        name = getattr(schedule, "__qualname__", type(schedule).__qualname__)
        return {"name": OWN, "of": name, "values": [float(schedule(i / 16)) for i in range(17)]}
    call = inspect.signature(made_by.func).bind(*made_by.args, **made_by.keywords)
    call.apply_defaults()
    arguments = {k: v for k, v in call.arguments.items() if not (k == "total_steps" and v is None)}
    return {"name": made_by.func.__name__, **{k: _plain(v) for k, v in arguments.items()}}


def built(spec: Mapping[str, Any], builders: Any) -> Schedule:
    """Return the schedule of a description, made by one of the `builders` (a module).

    Raises:
        ValueError: it is of a function that none of them made.
    """
    name = spec["name"]
    if name == OWN:
        raise ValueError(
            f"schedule: {spec['of']} is a function of your own, which no file can hold"
        )
    if name not in builders.__all__:
        raise ValueError(f"schedule: this version has no {name!r}")
    builder = getattr(builders, name)
    arguments = {key: _made(value, builders) for key, value in spec.items() if key != "name"}
    several = [
        p.name for p in inspect.signature(builder).parameters.values() if p.kind is p.VAR_POSITIONAL
    ]
    positional = arguments.pop(several[0]) if several else ()
    schedule: Schedule = builder(*positional, **arguments)
    return schedule


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool)):
        return value
    if callable(value):
        return describe(value)
    if isinstance(value, Iterable):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, int) else float(value)


def _made(value: Any, builders: Any) -> Any:
    if isinstance(value, Mapping):
        return built(value, builders)
    return [_made(item, builders) for item in value] if isinstance(value, list) else value
