"""Frozen layer groups: which parameters train, and what their batch norm does meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from onecycle import checks, optimizers


def freeze_to(opt: torch.optim.Optimizer, model: nn.Module, n: int, train_bn: bool) -> None:
    """Train the layer groups from `n` on and freeze those before it.

    A frozen parameter has no gradient, so the optimizer neither moves it nor touches its state.

    Args:
        opt: knows the layer groups.
        model: the parameters are its own.
        n: the first group to train; 0 trains all, a negative one counts from the end.
        train_bn: leave scale and shift of batch norm in frozen groups trainable.

    Raises:
        ValueError: there is no such group, or only one, which leaves nothing to train.
    """
    count = optimizers.n_groups(opt)
    first = checks.integer("n", n, low=-count)
    if first >= count or (first and count == 1):
        raise ValueError(
            f"freeze_to({n}): the model has {count} layer group{'s' if count > 1 else ''}"
            + (", so freezing would leave nothing to train; " if count == 1 else ", count from 0; ")
            + "splitter=lambda model: [model.body, model.head] makes one of each part"
        )
    first %= count
    for i, parameters in enumerate(optimizers.grouped(opt)):
        for parameter in parameters:
            parameter.requires_grad_(i >= first)
    if train_bn:
        own = {id(p) for parameters in optimizers.grouped(opt) for p in parameters}
        for norm in _norms(model):
            for parameter in norm.parameters():
                if id(parameter) in own:
                    parameter.requires_grad_()


def train(model: nn.Module, train_bn: bool) -> None:
    """Put `model` in training mode; without `train_bn` frozen batch norm stays as in evaluation."""
    model.train()
    if not train_bn:
        for norm in _norms(model):
            parameters = list(norm.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                norm.eval()


@contextmanager
def kept_on_error(model: nn.Module) -> Iterator[None]:
    """After an error in the block, have each parameter train or not as before it."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        yield
    except BaseException:
        for parameter, trained in before:
            parameter.requires_grad_(trained)
        raise


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]
