"""Random number generators: found wherever training draws from, read and set as plain values."""

import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

State = dict[str, Any]

LOADER_PARTS = ("sampler", "batch_sampler", "dataset", "datasets", "loader", "dl", "generator")
DEPTH = 4  # a generator is looked for in a data set, its transforms, one of them, its attributes
FEW = 100  # a longer list holds data, not transforms
GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
# By exact type: to copy a subclass may mean to iterate it, and it may be a loader.
CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict, Counter)


def found(loader: Any, modules: Sequence[nn.Module] = ()) -> list[Any]:
    """Return every generator that a part of `loader` or a module holds, always in one order."""
    generators: dict[int, Any] = {}
    seen: dict[int, int] = {}
    for part in [*parts(loader), *(m for module in modules for m in module.modules())]:
        _search(part, DEPTH, generators, seen)
    return list(generators.values())


def states(held: Iterable[Any]) -> State:
    """Return the states of the global generators and of those `held`, as numbers and tensors.

    >>> sorted(states([]))
    ['cuda', 'held', 'mps', 'numpy', 'python', 'torch']
    """
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None,
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
        "numpy": _plain(np.random.get_state()),  # noqa: NPY002 - users' transforms draw from it
        "python": random.getstate(),
        "held": [_state(generator) for generator in held],
    }


def set_states(held: Sequence[Any], state: State) -> None:
    """Set the global generators and those `held` to what `states` returned.

    Raises:
        ValueError: another number or kind of generators is held.
    """
    saved = [kind for kind, _ in state["held"]]
    if kinds(held) != saved:
        raise ValueError(
            f"data: the saved run drew from the generators {saved} of loader, data set and model, "
            f"this one has {kinds(held)}"
        )
    torch.set_rng_state(state["torch"])
    # A run that moves to a machine with other devices has no state for them.
    if state["cuda"] is not None and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
    if state["mps"] is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])
    np.random.set_state(_array(state["numpy"]))  # noqa: NPY002
    random.setstate(_tuples(state["python"]))
    for generator, (_, value) in zip(held, state["held"], strict=True):
        _set(generator, value)


def reseed(held: Iterable[Any], seed: int) -> None:
    """Seed the global generators and those `held`.

    >>> own = random.Random(1)
    >>> before = states([own])
    >>> reseed([own], 7)
    >>> own.random() == random.random() == random.Random(7).random()
    True
    >>> set_states([own], before)
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - users' transforms draw from it
    torch.manual_seed(seed)
    for generator in held:
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = type(generator.bit_generator)(seed).state
        else:
            generator.seed(seed)


def kinds(held: Iterable[Any]) -> list[str]:
    """Return what kind of generator each of `held` is."""
    return [type(generator).__name__ for generator in held]


def parts(loader: Any) -> list[Any]:
    """Return the loader and what hangs on it: samplers, data sets, generator, each once."""
    known: dict[int, Any] = {}
    waiting = [loader]
    while waiting:
        part = waiting.pop()
        if part is not None and id(part) not in known:
            known[id(part)] = part
            for name in LOADER_PARTS:
                held = _held(part, name)
                waiting += items(held) if type(held) in (list, tuple) else [held]
    return list(known.values())


def items(value: Any) -> list[Any]:
    """Return the items of a short list, tuple or dict."""
    if type(value) not in (*CONTAINERS, tuple) or len(value) > FEW:
        return []
    return list(value.values() if isinstance(value, dict) else value)


def _held(part: Any, name: str) -> Any:
    """Return an attribute, None where there is none or where a property fails."""
    try:
        return getattr(part, name, None)
    except Exception:  # noqa: BLE001 - whatever a user's property raises, it is no part then
        return None


def _search(value: Any, depth: int, known: dict[int, Any], seen: dict[int, int]) -> None:
    """Gather the generators that `value` is or holds, a few attributes deep."""
    if isinstance(value, GENERATORS):
        known[id(value)] = value
    elif seen.get(id(value), 0) < depth and not isinstance(value, (Tensor, type, ModuleType)):
        seen[id(value)] = depth
        inside = vars(value).values() if hasattr(value, "__dict__") else items(value)
        for item in list(inside):
            _search(item, depth - 1, known, seen)


def _state(generator: Any) -> tuple[str, Any]:
    kind = type(generator).__name__
    if isinstance(generator, random.Random):
        return kind, generator.getstate()
    if isinstance(generator, np.random.Generator):
        return kind, _plain(generator.bit_generator.state)
    return kind, _plain(generator.get_state())


def _set(generator: Any, value: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(_tuples(value))
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = _array(value)
    else:
        generator.set_state(_array(value))


def _plain(value: Any) -> Any:
    """Return a state of numpy's with its arrays as tensors, under a key that says so."""
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.name, "array": torch.from_numpy(value.astype(np.int64))}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


def _array(value: Any) -> Any:
    """Take `_plain` back."""
    if isinstance(value, dict):
        if value.keys() == {"dtype", "array"}:
            return value["array"].numpy().astype(value["dtype"])
        return {key: _array(item) for key, item in value.items()}
    return tuple(map(_array, value)) if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
