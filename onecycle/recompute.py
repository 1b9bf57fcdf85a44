"""A forward pass that is computed again in the backward pass, by torch.utils.checkpoint."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint


class Again:
    """The forward pass of a module, which the backward pass computes again.

    Args:
        module: its own `forward` is called.

    >>> block = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    >>> Again(block)(torch.ones(3, 2)).sum().backward()
    >>> block[1].num_batches_tracked
    tensor(1)
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.forward = module.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the module's output."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        before = _Before(self.module)
        forward = partial(self.forward, **kwargs)
        contexts = partial(_contexts, before)
        output = checkpoint(forward, *args, use_reentrant=False, context_fn=contexts)
        before.forget_unchanged()
        return output


class _Before:
    """A context in which a module has copies of the buffers that it has when this is made.

    Batch norm would take a batch into its statistics twice, and a module that reads what it writes
    would compute something else.
    """

    def __init__(self, module: nn.Module) -> None:
        self._kept = [
            _Buffer(part, name, buffer.detach().clone(), buffer, buffer._version)  # noqa: SLF001
            for part in module.modules()
            for name, buffer in part.named_buffers(recurse=False)
            if part.training and not buffer.is_inference()
        ]
        self._now: list[Tensor | None] = []

    def forget_unchanged(self) -> None:
        """Free the copies of what the forward pass has left as it was, such as a mask."""
        self._kept = [kept for kept in self._kept if kept.changed()]

    def __enter__(self) -> None:
        self._now = [kept.owner._buffers[kept.name] for kept in self._kept]  # noqa: SLF001
        for kept in self._kept:
            kept.owner._buffers[kept.name] = kept.copy.clone()  # noqa: SLF001

    def __exit__(self, *_: object) -> None:
        for kept, now in zip(self._kept, self._now, strict=True):
            kept.owner._buffers[kept.name] = now  # noqa: SLF001
        self._now = []


class _Buffer(NamedTuple):
    """A buffer as it was, and what tells whether it still is."""

    owner: nn.Module
    name: str
    copy: Tensor
    tensor: Tensor
    version: int

    def changed(self) -> bool:
        # Batch norm changes its statistics without counting it in the version of the tensor.
        same = self.owner._buffers[self.name] is self.tensor  # noqa: SLF001
        normed = isinstance(self.owner, _NormBase)
        return normed or not same or self.tensor._version != self.version  # noqa: SLF001


def _contexts(before: _Before) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return the context of a forward pass, and that of its repetition."""
    return nullcontext(), before
