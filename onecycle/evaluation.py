"""One pass over a loader in evaluation mode that leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
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
Run = Callable[[Any], Any]
CPU = torch.device("cpu")


class Evaluator:
    """Runs a model without training it: modes, generators and gradients stay as they are.

    Args:
        network: the model.
        modules: the model, and the loss where it is a module.
        world: the processes, if several have a part of every batch each.
    """

    def __init__(
        self, network: Network, modules: Sequence[nn.Module], world: World | None = None
    ) -> None:
        self.network = network
        self.modules = modules
        self.world = World() if world is None else world
        self.model = network.model
        self.device = network.device

    def __call__(
        self, loader: Iterable[Any], take: Take, *, aside: bool = False, run: Run | None = None
    ) -> None:
        """Call take(batch, target, pred) for every batch of `loader`.

        `aside` also leaves buffers, attributes and a loader's running workers as they are, which
        the validation of a fit does not need; `run` is called with the inputs instead of the model.
        """
        run = run or self.network
        kept = self.kept(loader) if aside else snapshot.rng_preserved(loader)
        with kept, self.network.running(), snapshot.evaluating(self.model), torch.no_grad():
            for k, batch in enumerate(batches_of(loader, "validation")):
                moved = batches.to_device(batch, self.device)
                inputs, target = batches.split(moved)
                with self.network.autocast():
                    pred = run(inputs)
                if not fills_in(loader, k):
                    take(moved, target, pred)

    def kept(self, loader: Any) -> AbstractContextManager[None]:
        """Return the context that leaves no trace on model, generators and `loader`."""
        return snapshot.looked_at(self.modules, loader)

    def collect(
        self,
        loader: Iterable[Any],
        activation: Callable[[Tensor], Tensor] | None,
        *,
        run: Run | None = None,
        each: Callable[[Any, Any, int], Tensor] | None = None,
        seen: Callable[[Any, Tensor], None] | None = None,
    ) -> tuple[Any, Any, Tensor]:
        """Return all predictions, targets (None where there are none) and losses, on the CPU.

        Args:
            loader: batches.
            activation: of the model's output.
            run: as in a call.
            each: (pred, target, n) -> the losses (n,) of a batch; without it there are none.
            seen: is called with the inputs of each batch, and its losses.
        """
        preds: list[Any] = []
        targets: list[Any] = []
        losses: list[Tensor] = []
        inputs: list[Any] = []  # of all processes, where there are several
        given: list[Any] = []
        forward = run or self.network

        def noting(inputs: Any) -> Any:
            # Copied before the model is run, which may write into them.
            given[:] = [deepcopy(batches.to_device(inputs, CPU))]
            return forward(inputs)

        def take(batch: Any, target: Any, pred: Any) -> None:
            preds.append(finished(pred, activation))
            targets.append(finished(target, None))
            losses.append(torch.empty(0))
            if each is not None:
                batches.require_target(batch, target)
                n = batches.samples(*batches.split(batch))
                losses[-1] = each(batches.widened(pred), target, n).float()
            if seen is not None:
                inputs.append(given[0])
                if self.world.size == 1:
                    seen(inputs.pop(), losses[-1])

        self(loader, take, aside=True, run=forward if seen is None else noting)
        if self.world.size > 1:
            preds, targets, losses, inputs = map(
                self.world.merged, (preds, targets, losses, inputs)
            )
            for part, of_part in zip(inputs, losses, strict=False):
                if seen is not None:
                    seen(part, of_part)
        if not preds:
            raise ValueError("dl is empty: it must yield at least one batch")
        if len({target is None for target in targets}) > 1:
            raise ValueError("dl must have a target in every batch, or in none")
        whole = None if targets[0] is None else batches.concat(targets)
        return batches.concat(preds), whole, torch.cat(losses)

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
    return batches.to_device(pred, CPU)
