"""Modules of a model, picked by class, by a function, by name or as they are."""

import difflib
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

Modules = Callable[[nn.Module], bool] | Iterable[str | nn.Module] | str | nn.Module


def checked(modules: Any) -> Any:
    """Return a function or None as it is, a test for a class, names and modules in a list.

    Raises:
        TypeError: anything else.

    >>> checked("0")
    ['0']
    """
    if isinstance(modules, type):
        return lambda module: isinstance(module, modules)
    if isinstance(modules, (str, nn.Module)):
        return [modules]
    if modules is None or callable(modules):
        return modules
    if isinstance(modules, Iterable):
        items = list(modules)
        if items and all(isinstance(item, (str, nn.Module)) for item in items):
            return items
    raise TypeError(f"modules must be a function, names or modules, got {modules!r}")


def selected(model: nn.Module, wanted: Any) -> dict[str, nn.Module]:
    """Return the modules that are picked, by their names; None picks those with parameters.

    Args:
        model: it has them.
        wanted: what `checked` returned.

    Raises:
        ValueError: no module at all, or a name or module that the model does not have.

    >>> selected(nn.Sequential(nn.Linear(2, 1), nn.ReLU()), checked(nn.ReLU))
    {'1': ReLU()}
    """
    if wanted is None or callable(wanted):
        test = wanted or _has_parameters
        found = {name: module for name, module in model.named_modules() if test(module)}
    else:
        known = dict(model.named_modules(remove_duplicate=False))
        found = {name: known[name] for name in (_name(item, known) for item in wanted)}
    if not found:
        raise ValueError("modules picks no module of the model")
    return found


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _name(item: Any, known: dict[str, nn.Module]) -> str:
    """Return the name of a module that was given by name or itself."""
    for name, module in known.items():
        if item is module or item == name:
            return name
    if not isinstance(item, str):
        raise ValueError(f"modules: the model has no such {type(item).__name__}: {item!r}")
    near = ", ".join(map(repr, difflib.get_close_matches(item, known, cutoff=0.0)))
    raise ValueError(f"modules: the model has no {item!r}, the nearest names are {near}")
