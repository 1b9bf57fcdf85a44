"""One pass over a loader in evaluation mode that leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from onecycle import batch as batches
from onecycle import snapshot
from onecycle.data.sharding import fills_in
from onecycle.distributed import World
from onecycle.network import Network
from onecycle.notes import batches_of

Take = Callable[[Any, Any, Any], None]


class Evaluator:
    """Runs a model without training it: modes, generators and gradients stay as they are.

    Args:
        network: the model.
        modules: the model, and the loss where it is a module.
        world: the processes, each of which has a part of every batch.
    """

    def __init__(self, network: Network, modules: Sequence[nn.Module], world: World) -> None:
        self.network = network
        self.modules = modules
        self.world = world
        self.model = network.model
        self.device = network.device

    def __call__(self, loader: Iterable[Any], take: Take, *, aside: bool = False) -> None:
        """Call take(batch, target, pred) for every batch of `loader`.

        `aside` also leaves buffers, attributes and a loader's running workers as they are, which
        the validation of a fit does not need.
        """
        kept = self.kept(loader) if aside else snapshot.rng_preserved(loader)
        with kept, self.network.running(), snapshot.evaluating(self.model), torch.no_grad():
            for k, batch in enumerate(batches_of(loader, "validation")):
                moved = batches.to_device(batch, self.device)
                inputs, target = batches.split(moved)
                with self.network.autocast():
                    pred = self.network(inputs)
                if not fills_in(loader, k):
                    take(moved, target, pred)

    def kept(self, loader: Any) -> AbstractContextManager[None]:
        """Return the context that leaves no trace on model, generators and `loader`."""
        return snapshot.looked_at(self.modules, loader)

    def collect(
        self, loader: Iterable[Any], activation: Callable[[Tensor], Tensor] | None
    ) -> tuple[Any, Any]:
        """Return all predictions and all targets, or None where there are none, on the CPU."""
        preds: list[Any] = []
        targets: list[Any] = []

        def take(_: Any, target: Any, pred: Any) -> None:
            preds.append(finished(pred, activation))
            targets.append(finished(target, None))

        self(loader, take, aside=True)
        if self.world.size > 1:
            preds, targets = self.world.merged(preds), self.world.merged(targets)
        if not preds:
            raise ValueError("dl is empty: it must yield at least one batch")
        if len({target is None for target in targets}) > 1:
            raise ValueError("dl must have a target in every batch, or in none")
        return batches.concat(preds), None if targets[0] is None else batches.concat(targets)

    def predict(self, inputs: Any) -> Any:
        """Return the model's output for one batch of inputs."""
        if inputs is None or isinstance(inputs, (str, int, float)):
            raise TypeError(f"x must be one batch of inputs, got {inputs!r}")
        frame = hasattr(inputs, "to_numpy")
        moved = batches.to_device(batches.as_tensor(inputs, "x") if frame else inputs, self.device)
        running, autocast = self.network.running(), self.network.autocast()
        with self.kept(None), running, snapshot.evaluating(self.model), torch.no_grad(), autocast:
            return self.network(moved)


def finished(pred: Any, activation: Callable[[Tensor], Tensor] | None) -> Any:
    """Return predictions on the CPU, at least single precision, a tensor also activated."""
    pred = batches.widened(pred)
    if isinstance(pred, Tensor):
        return (activation(pred) if activation else pred).cpu()
    return batches.to_device(pred, torch.device("cpu"))
