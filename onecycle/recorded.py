"""Training steps recorded once and replayed, as CUDA graphs: `Learner(compile="step")`.

A GPU that is given many small kernels waits for Python between them. A recorded step is given to it
at once. What is recorded is forward, loss and backward: the update stays outside, because momentum,
which 1cycle moves, is a constant in a recorded kernel, and because it is one fused kernel anyway.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from onecycle.trainer import Trainer

WARM_UP = 3  # steps of one shape before it is recorded: libraries set themselves up in the first
BETWEEN = ("on_loss_begin", "on_backward_begin")
Work = Callable[[], None]


def on_cuda(work: Work) -> Work:
    """Record the kernels of `work`, which are not run, and return what runs them."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


class RecordedStep:
    """Forward, loss and backward of batches of one shape.

    The first shape that comes more than three times in a fit is recorded; batches of another, such
    as a ragged last one, are trained as ever. Where steps cannot be recorded a warning says why,
    once for each fit, and they are trained as ever, too.

    Args:
        record: records work and returns what does it again.
    """

    def __init__(self, record: Callable[[Work], Work] = on_cuda) -> None:
        self._record = record
        self._device = "cuda" if record is on_cuda else "cpu"
        self.begin()

    def begin(self) -> None:
        """Begin a fit: parameters may have been frozen, or hooks added."""
        self._refused = False
        self._seen: dict[Any, int] = {}
        self._shape: Any = None
        self._replay: Work | None = None
        self._kept: list[Tensor] = []
        self._pred: Any = None
        self._loss: Any = None
        self._parameters: list[Tensor] = []
        self._gradients: list[Tensor | None] = []

    def __call__(self, learn: Trainer, inputs: Any, target: Any) -> bool:
        """Leave the gradients of a batch, its pred and loss, and return True, if it can be."""
        if self._refused:
            return False
        tensors = _tensors((inputs, target))
        shape = [(t.shape, t.dtype) for t in tensors]
        if self._replay is None and self._ready(learn, tensors, str(shape)):
            self._shape, self._replay = shape, self._recorded(learn, inputs, target)
        if self._replay is None or shape != self._shape:
            return False
        for kept, tensor in zip(self._kept, tensors, strict=True):
            kept.copy_(tensor, non_blocking=True)
        self._replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        # The next replay writes over it.
        learn.pred, learn.loss = self._pred, self._loss.clone()
        return True

    def _ready(self, learn: Trainer, tensors: list[Tensor], shape: str) -> bool:
        """Tell whether this batch is to be recorded; refuse where none can be."""
        step = learn.training_step
        hooked = [event for event in BETWEEN if learn.loop.hooks[event]]
        if learn.device.type != self._device:
            self._refuse(f"CUDA graphs need cuda, this is {learn.device.type}")
        elif hooked:
            self._refuse(f"a callback has {hooked[0]}, which could not be called")
        elif step.accumulate > 1 or learn.network.precision == "fp16":
            self._refuse("accumulate and fp16 change from step to step")
        elif not tensors:
            self._refuse("the batch holds no tensors")
        self._seen[shape] = self._seen.get(shape, 0) + 1
        return not self._refused and self._seen[shape] > WARM_UP

    def _recorded(self, learn: Trainer, inputs: Any, target: Any) -> Work | None:
        """Return a step on tensors of its own, or None where it cannot be recorded."""
        inputs, target = _copied(inputs), _copied(target)
        self._kept = _tensors((inputs, target))
        self._parameters = learn.training_step.update.parameters()

        def work() -> None:
            with learn.network.autocast():
                self._pred = learn.network(inputs)
                loss = learn.compute_loss(self._pred, target)
            torch.autograd.backward(loss)
            self._loss = loss.detach()
            self._gradients = [p.grad for p in self._parameters]

        try:
            return self._record(work)
        except Exception as error:  # noqa: BLE001 - whatever it is, the step can be taken as ever
            self._refuse(f"{type(error).__name__}: {str(error).splitlines()[0]}")
            return None
        finally:
            learn.training_step.update.clear()

    def _refuse(self, why: str) -> None:
        self._refused = True
        warnings.warn(f'compile="step": steps are not recorded: {why}', stacklevel=2)


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors in a nested batch, in its order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in _tensors(item)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _copied(value: Any) -> Any:
    """Return a nested batch with copies of its tensors."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_copied(item) for item in value)
    return value
