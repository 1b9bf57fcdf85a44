"""Where a value that is not finite comes from: one more pass over the batch, with hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from onecycle import batch as batches
from onecycle import snapshot

if TYPE_CHECKING:
    from onecycle.trainer import Trainer

UNSEEN = (
    "A second pass over the batch is finite: look at callbacks, at what is random in the model, "
    "and at batches accumulated before it"
)


def told(learn: Trainer) -> str:
    """Return a sentence on what is not finite first when `learn.batch` is run again.

    In the forward pass that is a module, in the order in which they finish, or else the loss; in
    the backward pass a parameter, in the order in which gradients come: the last layers first.
    Callbacks are not called, and random numbers are others. Model, gradients, buffers and
    generators stay as they are. A pass that fails is told, too: it must not hide the first error.

    Args:
        learn: its batch, which has a target, is the one in question.
    """
    found: list[str] = []
    try:
        with snapshot.looked_at(learn.modules, None), torch.enable_grad():
            loss = _forward(learn, found)
            if not (found or batches.finite(loss)):
                found.append("Every module's output is finite, the loss of them is not")
            if not found:
                _backward(learn.model, loss, found)
    except Exception as error:  # noqa: BLE001 - whatever it is, the first error is the one to raise
        found.append(f"A second pass over the batch, to look for the place, raised {error!r}")
    return found[0] if found else UNSEEN


def _forward(learn: Trainer, found: list[str]) -> Tensor:
    """Return the loss; write down every module whose output is not finite."""

    def look(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if not batches.finite(output):
            came = "" if batches.finite(inputs) else ", whose input is not finite either"
            found.append(f"Not finite first: the output of {_named(name, module)}{came}")

    inputs, target = batches.split(learn.batch)
    modules = learn.model.named_modules()
    # The model itself, for hooks are not called in a compiled one.
    with (
        _hooked(m.register_forward_hook(partial(look, name)) for name, m in modules),
        learn.network.autocast(),
    ):
        loss: Tensor = learn.compute_loss(batches.forward(learn.model, inputs), target)
        return loss


def _backward(model: nn.Module, loss: Tensor, found: list[str]) -> None:
    """Write down every parameter whose gradient is not finite."""

    def look(name: str, gradient: Tensor) -> None:
        if not bool(gradient.isfinite().all()):
            found.append(f"Not finite first: the gradient of {name!r}")

    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with _hooked(_hook(p, partial(look, name)) for name, p in trained.items()):
        # Not by `backward`, which would add to the gradients there are.
        torch.autograd.grad(loss, list(trained.values()), allow_unused=True)


@contextmanager
def _hooked(handles: Iterator[Any]) -> Iterator[None]:
    """Take all hooks away again after the block."""
    made = list(handles)
    try:
        yield
    finally:
        for handle in made:
            handle.remove()


def _hook(parameter: Tensor, look: Callable[[Tensor], None]) -> Any:
    return parameter.register_hook(look)  # type: ignore[no-untyped-call]


def _named(name: str, module: nn.Module) -> str:
    kind = type(module).__name__
    return f"{name!r} ({kind})" if name else f"the model itself ({kind})"
