"""Several optimizers that act as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from onecycle.shortcuts import Update


class Together(Optimizer):
    """Several optimizers as one: the groups and states are theirs, and a step is one of each.

    It has no state of its own. Its `state_dict` has the format of torch, with the groups of all
    members, in their order; whatever is written into its groups is written into theirs.

    Args:
        members: optimizers of different parameters, first to last.
        by_parts: each member has a part of the model, first to last, so that their groups are layer
            groups that can be frozen.

    >>> first, last = torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)
    >>> sgd, adam = torch.optim.SGD(first.parameters()), torch.optim.Adam(last.parameters())
    >>> opt = Together([sgd, adam])
    >>> opt.param_groups[1]["lr"] = 0.5
    >>> adam.param_groups[0]["lr"], len(opt.state_dict()["param_groups"])
    (0.5, 2)
    """

    members: list[Optimizer]
    by_parts: bool
    _updates: list[Update]

    def __init__(self, members: Sequence[Optimizer], *, by_parts: bool = False) -> None:
        # As torch makes one from a file: its constructor would want groups of its own.
        self.__setstate__(
            {
                "defaults": {},
                "members": list(members),
                "by_parts": by_parts,
                "_updates": [Update(member) for member in members],
            }
        )

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The very groups of the members, in their order."""
        return [group for member in self.members for group in member.param_groups]

    @property
    def state(self) -> dict[Tensor, Any]:  # type: ignore[override]
        """What the members keep of each parameter."""
        return {p: own for member in self.members for p, own in member.state.items()}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of every member; return what `closure` returned before it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for update in self._updates:
            parameters = update.parameters()
            update(parameters, [grad for p in parameters if (grad := p.grad) is not None])
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give every member its part.

        Raises:
            ValueError: the state is of other groups.
        """
        groups = state_dict["param_groups"]
        here, there = len(self.param_groups), len(groups)
        if here != there:
            raise ValueError(f"state_dict must have {here} parameter groups, got {there}")
        first = 0
        for member in self.members:
            own = groups[first : first + len(member.param_groups)]
            first += len(own)
            held = {i for group in own for i in group["params"]}
            states = {i: state for i, state in state_dict["state"].items() if i in held}
            member.load_state_dict({"state": states, "param_groups": own})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse a group: it belongs to one of the members.

        Raises:
            TypeError: always.
        """
        size = len(param_group["params"])
        raise TypeError(f"param_group of {size} must be added to one of {name(self)}, not to all")

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle by the members."""
        return {key: vars(self)[key] for key in ("defaults", "members", "by_parts", "_updates")}


def members(opt: Optimizer) -> list[Optimizer]:
    """Return the optimizers that act as one; of any other it is the only one.

    >>> sgd = torch.optim.SGD(torch.nn.Linear(2, 1).parameters())
    >>> members(Together([sgd])) == members(sgd) == [sgd]
    True
    """
    return list(opt.members) if isinstance(opt, Together) else [opt]


def name(opt: Optimizer) -> str:
    """Return the name of the class, or those of all members.

    >>> first, last = torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)
    >>> sgd, adam = torch.optim.SGD(first.parameters()), torch.optim.Adam(last.parameters())
    >>> name(Together([sgd, adam]))
    'SGD + Adam'
    """
    return " + ".join(type(member).__name__ for member in members(opt))
