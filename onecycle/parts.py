"""Parts of a model: its layer groups, and the parameter groups that torch makes of them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

Group = dict[str, Any]
Part = nn.Module | Iterable[nn.Parameter]
Splitter = Callable[[nn.Module], Iterable[Part]] | Sequence[Part]


def layer_groups(model: nn.Module, splitter: Splitter | None) -> list[list[nn.Parameter]]:
    """Return the parameters of each layer group; together they hold each trainable one once."""
    if splitter is None:
        return [list(model.parameters())]
    parts: Any = splitter
    if callable(splitter) and not isinstance(splitter, nn.Module):
        parts = splitter(model)
    if isinstance(parts, (nn.Module, str)) or not isinstance(parts, Iterable):
        raise TypeError(f"splitter must give a list, a part for each layer group, got {parts!r}")
    groups = [_parameters(part) for part in parts]
    listed = [id(parameter) for group in groups for parameter in group]
    missing = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in listed]
    if missing:
        raise ValueError(
            f"splitter must return every trainable parameter, {missing[0]!r} is missing"
        )
    twice = [n for n, p in model.named_parameters() if listed.count(id(p)) > 1]
    if twice:
        raise ValueError(f"splitter must return each parameter once, {twice[0]!r} is in two places")
    if not all(groups):
        raise ValueError(
            "splitter must return groups with parameters in them, one is empty: "
            f"number {groups.index([])}"
        )
    if not set(listed) <= {id(parameter) for parameter in model.parameters()}:
        raise ValueError("splitter must return parameters of model, one is of another")
    return groups


def _parameters(part: Any) -> list[nn.Parameter]:
    """Return the parameters of a module, or a list of them or of modules, each once."""
    if isinstance(part, nn.Module):
        return list(part.parameters())
    if not isinstance(part, Iterable) or isinstance(part, (str, torch.Tensor)):
        kind = "one tensor" if isinstance(part, torch.Tensor) else repr(part)
        raise TypeError(f"splitter must give modules or lists of parameters, got {kind}")
    found: list[nn.Parameter] = []
    for item in part:
        if isinstance(item, nn.Module):
            found += item.parameters()
        elif isinstance(item, nn.Parameter):
            found.append(item)
        else:
            raise TypeError(f"splitter must give modules or lists of parameters, got {item!r}")
    return found


def torch_groups(groups: list[list[nn.Parameter]]) -> list[Group]:
    """Return each layer group as a torch group with decay and one without, empty ones left out."""
    torch_groups: list[Group] = []
    for i, parameters in enumerate(groups):
        # Scales and biases have one dimension; shrinking those only fights the normalisation.
        for decay in (True, False):
            chosen = [p for p in parameters if (p.ndim > 1) == decay]
            if chosen:
                torch_groups.append({"params": chosen, "layer_group": i, "decay": decay})
    return torch_groups
