"""Models that several processes share: each parameter is a DTensor, of which each has a shard.

That is what `torch.distributed.fsdp.fully_shard` makes of a model. Its forward and backward passes
gather the parameters of one part after the other, so all processes have to make them together.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Shard = Callable[[nn.Module], object]


def is_sharded(model: nn.Module) -> bool:
    """Tell whether `model`, or a part of it, was given to `fully_shard`.

    >>> is_sharded(nn.Linear(1, 1))
    False
    """
    return bool(_parts(model))


def is_shard(value: Any) -> bool:
    """Tell whether `value` is a DTensor.

    >>> is_shard(torch.zeros(1))
    False
    """
    return isinstance(value, _loaded("torch.distributed.tensor", "DTensor"))


def apply(shard: Shard, model: nn.Module, processes: int) -> None:
    """Have `shard` give `model`, the same in all processes, to `fully_shard`.

    One process by itself has nothing to share, and its model stays as it is.

    Raises:
        TypeError: `shard` is no function.
        ValueError: it has sharded nothing, or `model` was sharded before.

    >>> apply(print, nn.Linear(1, 1), processes=1)
    """
    if not callable(shard):
        raise TypeError(f"shard must be a function of the model, got {shard!r}")
    if processes == 1:
        return
    if is_sharded(model):
        raise ValueError("shard: the model was given to fully_shard already, leave one of them out")
    shard(model)
    if not is_sharded(model):
        raise ValueError("shard must give the model, and parts of it, to fully_shard; it did not")


def check(model: nn.Module, processes: int) -> None:
    """Refuse a model whose parameters are not all shared by all processes.

    Raises:
        ValueError: it names one whose gradient would be another one in each process.

    >>> check(nn.ReLU(), processes=1)
    """
    for name, parameter in model.named_parameters():
        if not is_shard(parameter):
            raise ValueError(
                f"model: {name!r} is not sharded, though other parts are: give the whole model to "
                "fully_shard, too, after its parts"
            )
        mesh: Any = parameter.device_mesh  # type: ignore[attr-defined]
        if mesh.size() != processes:
            raise ValueError(
                f"model: {name!r} is shared by {mesh.size()} of {processes} processes: the mesh of "
                "fully_shard must hold all of them"
            )


def reshard(model: nn.Module) -> None:
    """Free what a forward pass without a backward pass has left gathered.

    >>> reshard(nn.Linear(1, 1))
    """
    for part in _parts(model):
        part.reshard()


def local(tensor: Tensor) -> Tensor:
    """Return the shard of this process, in the same memory; a plain tensor is its own.

    >>> local(torch.ones(2))
    tensor([1., 1.])
    """
    if not is_shard(tensor):
        return tensor
    shard: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return shard


def full(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor, which all processes have to ask for.

    >>> full(torch.ones(2))
    tensor([1., 1.])
    """
    if not is_shard(tensor):
        return tensor
    whole: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return whole


def whole(value: Any) -> Any:
    """Return nested containers with the whole of each shard in them, on the CPU.

    All processes have to ask for it.

    >>> whole({"a": [torch.ones(2), 1]})
    {'a': [tensor([1., 1.]), 1]}
    """
    return mapped(value, lambda _, tensor: full(tensor.detach()).cpu())


def split(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return nested containers with tensors without memory for the shards, and those by name.

    >>> split({"a": [torch.ones(2), 1]})
    ({'a': [tensor([1., 1.]), 1]}, {})
    """
    found: dict[str, Tensor] = {}

    def taken(name: str, tensor: Tensor) -> Tensor:
        found[name] = tensor.detach()
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    return mapped(value, taken), found


def mapped(
    value: Any,
    function: Callable[[str, Tensor], Any],
    chosen: Callable[[Any], bool] = is_shard,
    name: str = "",
) -> Any:
    """Return nested containers with function(name, tensor) for each chosen one in them.

    >>> mapped({"a": [torch.ones(2), 1]}, lambda name, tensor: name, torch.is_tensor)
    {'a': ['a/0', 1]}
    """

    def below(key: Any, item: Any) -> Any:
        return mapped(item, function, chosen, f"{name}/{key}" if name else str(key))

    if chosen(value):
        return function(name, value)
    if isinstance(value, Mapping):
        return {key: below(key, item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(below(i, item) for i, item in enumerate(value))
    return value


def like(value: Tensor, target: Tensor) -> Tensor:
    """Return `value`, which all processes have, on the device of `target` and sharded as it is.

    >>> like(torch.ones(2), torch.zeros(2))
    tensor([1., 1.])
    """
    to: Any = target
    if not is_shard(target):
        return full(value).to(target.device)
    if is_shard(value):
        return value.redistribute(to.device_mesh, to.placements)  # type: ignore[attr-defined,no-any-return]
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(target.device), to.device_mesh, to.placements)


def load(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Have `model` take a state, whole or in shards.

    >>> model = nn.Linear(1, 1)
    >>> load(model, model.state_dict())
    """
    if is_sharded(model):
        own = model.state_dict()
        state = {k: like(v, own[k]) if is_shard(own.get(k)) else v for k, v in state.items()}
    model.load_state_dict(state)


def _parts(model: nn.Module) -> list[Any]:
    kind = _loaded("torch.distributed.fsdp", "FSDPModule")
    return [part for part in model.modules() if isinstance(part, kind)] if kind else []


def _loaded(module: str, name: str) -> Any:
    """Return a class of torch, or no class: where its module is not loaded there is none of it."""
    return getattr(sys.modules.get(module), name, ())
