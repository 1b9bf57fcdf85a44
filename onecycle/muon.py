"""Muon for the hidden weight matrices of a model, and AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from onecycle import checks, optimizers
from onecycle.parts import torch_groups

Hidden = Callable[[str, nn.Parameter], bool]


def muon_split(
    model: nn.Module,
    lr: float = 0.02,
    *,
    adam_lr: float = 3e-4,
    wd: float | None = 0.01,
    hidden: Hidden | None = None,
    **muon: Any,
) -> list[torch.optim.Optimizer]:
    """Return AdamW and Muon, each with its parameters: `Learner(data, model, opt_func=muon_split)`.

    Muon gets the hidden weight matrices, see `hidden_weights`; AdamW gets embeddings, the first and
    the last layer, convolutions, whose filters have four dimensions, norms and biases. Muon is the
    last group: a learning rate that is one number is Muon's, and that of AdamW keeps its ratio. The
    `moms` of a 1cycle move the momentum of the one and the first beta of the other. Other values
    are set by `functools.partial(muon_split, lr=0.01)`.

    Args:
        model: its parameters are trained.
        lr: of Muon, above 0.
        adam_lr: of AdamW, above 0.
        wd: weight decay of both, but for norms and biases; the Learner gives its own. None leaves
            those of torch, 0.1 for Muon and 0.01 for AdamW.
        hidden: (name, parameter) -> whether Muon gets it, in the place of `hidden_weights`.
        muon: further arguments of `torch.optim.Muon`, such as `adjust_lr_fn="match_rms_adamw"`,
            with which both take rates of AdamW's size.

    Raises:
        ImportError: torch is older than 2.9.
        ValueError: there is nothing for Muon; or it gets what is no matrix.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"
    (https://kellerjordan.github.io/posts/muon), and `torch.optim.Muon`.

    >>> from onecycle import DataLoaders, Learner, muon_split
    >>> x = torch.randn(64, 8)
    >>> data = DataLoaders.from_tensors(x, x[:, :1], valid=0.25)
    >>> parts = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1)]
    >>> if hasattr(torch.optim, "Muon"):  # from torch 2.9 on
    ...     learn = Learner(data, nn.Sequential(*parts), opt_func=muon_split)
    ...     with learn.no_logging():
    ...         learn.fit_one_cycle(1)
    """
    kind = getattr(torch.optim, "Muon", None)
    if kind is None:
        raise ImportError(
            f"muon_split needs torch.optim.Muon, and this is torch {torch.__version__}: "
            'pip install "torch>=2.9"'
        )
    lr, adam_lr = checks.positive("lr", lr), checks.positive("adam_lr", adam_lr)
    decay: dict[str, Any] = {}
    if wd is not None:
        decay["weight_decay"] = checks.real("wd", wd, low=0.0)
    matrices, rest = _divided(model, hidden)
    last = kind(matrices, lr=lr, **decay, **muon)
    if not rest:
        return [last]
    groups = torch_groups([rest])
    for group in groups:
        if not group["decay"]:
            group["weight_decay"] = 0.0
    return [optimizers.made(partial(torch.optim.AdamW, lr=adam_lr, **decay), groups, model), last]


def _divided(
    model: nn.Module, hidden: Hidden | None
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the parameters for Muon, and all others."""
    named = list(model.named_parameters())
    chosen = set(hidden_weights(model) if hidden is None else [n for n, p in named if hidden(n, p)])
    if not chosen:
        raise ValueError(
            "model has no hidden weight matrix for Muon, which leaves out embeddings, convolutions "
            "and the first and the last layer: use torch.optim.AdamW, or choose by hidden="
        )
    return [p for n, p in named if n in chosen], [p for n, p in named if n not in chosen]


def hidden_weights(model: nn.Module) -> list[str]:
    """Return the names of the hidden weight matrices of `model`, in its order.

    Those are parameters of two dimensions that are called a weight, as in `nn.Linear`, attention
    and recurrent layers, but for embeddings and for the first and the last layer with such a weight
    or with filters, in the order in which the model has them.

    >>> hidden_weights(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 1)))
    ['1.weight']
    >>> hidden_weights(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9)))
    ['1.weight']
    """
    layers = [module for module in model.modules() if _weights(module)]
    embeddings = [m for m in layers if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    apart = [*layers[:1], *layers[-1:], *embeddings]
    outside = {id(p) for module in apart for p in module.parameters(recurse=False)}
    inside = {id(p) for module in layers for p in _weights(module) if p.ndim == 2} - outside
    return [name for name, parameter in model.named_parameters() if id(parameter) in inside]


def _weights(module: nn.Module) -> list[nn.Parameter]:
    """Return the matrices and filters of one layer; a table of positions is called otherwise."""
    own = module.named_parameters(recurse=False)
    return [p for name, p in own if "weight" in name and p.ndim >= 2]
