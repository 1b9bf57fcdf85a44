"""Training steps recorded once and replayed, as CUDA graphs: `Learner(compile="step")`.

A GPU that is given many small kernels waits for Python between them. A recorded step is given to it
at once. What is recorded is forward, loss and backward: the update stays outside, because momentum,
which 1cycle moves, is a constant in a recorded kernel, and because it is one fused kernel anyway.

Only kernels are recorded. Whatever else a forward pass does, such as to count its calls, to choose
by a number of Python's or to keep a tensor in an attribute, it does in the first steps only.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from operator import is_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from onecycle import batch as batches

if TYPE_CHECKING:
    from onecycle.trainer import Trainer

WARM_UP = 3  # steps of one shape before it is recorded: libraries set themselves up in the first
BETWEEN = ("on_loss_begin", "on_backward_begin")
Work = Callable[[], None]


def on_cuda(work: Work) -> Work:
    """Record the kernels of `work` on the current device, which are not run; return what runs them.

    Nothing of the steps before is alive in autograd, so nothing waits for the stream that they were
    on, and they need no stream of their own.
    """
    graph = torch.cuda.CUDAGraph()
    # The stream that torch would take is of the device that was recorded on first; and a thread
    # that pins the memory of the next batch is not to spoil the recording.
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    recording = torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")
    try:
        with recording:
            work()
    except BaseException:
        # A recording that failed leaves the generator as one that is being recorded.
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(generator.clone_state())
        raise
    return graph.replay


class RecordedStep:
    """Forward, loss and backward of batches of one shape.

    The first shape that comes more than three times in a fit is recorded; batches of another, such
    as a ragged last one, are trained as ever. Where steps cannot be recorded a warning says why,
    once for each fit, and they are trained as ever, too. When other parameters are trained than
    before, the recording is made anew.

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
        self._forget()

    def _forget(self) -> None:
        self._seen: dict[Any, int] = {}
        self._shape: Any = None
        self._replay: Work | None = None
        self._kept: list[Tensor] = []
        self._pred: Any = None
        self._loss: Any = None
        self._trained: list[int] = []
        self._parameters: list[Tensor] = []
        self._gradients: list[Tensor | None] = []
        self._written: list[Tensor] = []

    def __call__(self, learn: Trainer, inputs: Any, target: Any) -> bool:
        """Leave the gradients of a batch, its pred and loss, and return True, if it can be."""
        if self._refused:
            return False
        try:
            shape = _shape((inputs, target))
        except TypeError as error:
            self._refuse(str(error))
            return False
        if self._replay is not None and self._trained != _trained(learn):
            self._forget()
        tensors = batches.tensors((inputs, target))
        if self._replay is None and self._ready(learn, tensors, shape):
            self._shape, self._replay = shape, self._recorded(learn, inputs, target)
        if self._replay is None or shape != self._shape:
            return False
        for kept, tensor in zip(self._kept, tensors, strict=True):
            kept.copy_(tensor, non_blocking=True)
        self._replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        # Torch does not know what a replay writes to; the guard asks it.
        for buffer in self._written:
            increment_version(buffer)
        # The next replay writes over them.
        learn.pred, learn.loss = batches.each(Tensor.clone, self._pred), self._loss.clone()
        return True

    def _ready(self, learn: Trainer, tensors: list[Tensor], shape: Any) -> bool:
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
        elif any(t.device != learn.device or t.requires_grad for t in tensors):
            self._refuse("the batch is on another device, or has gradients of its own")
        self._seen[shape] = self._seen.get(shape, 0) + 1
        return not self._refused and self._seen[shape] > WARM_UP

    def _recorded(self, learn: Trainer, inputs: Any, target: Any) -> Work | None:
        """Return a step on tensors of its own, or None where it cannot be recorded."""
        inputs, target = batches.each(Tensor.clone, inputs), batches.each(Tensor.clone, target)
        self._kept = batches.tensors((inputs, target))
        self._trained = _trained(learn)
        self._parameters = learn.training_step.update.parameters()
        buffers = _Buffers(learn.modules)

        def work() -> None:
            with learn.network.autocast():
                pred = learn.network(inputs)
                loss = learn.compute_loss(pred, target)
            torch.autograd.backward(loss)
            # Nothing may keep the graph of autograd, whose nodes belong to the stream of recording.
            self._pred, self._loss = batches.each(Tensor.detach, pred), loss.detach()
            self._gradients = [p.grad for p in self._parameters]

        try:
            with torch.cuda.device_of(self._kept[0]):  # type: ignore[no-untyped-call]
                replay = self._record(work)
            self._written = buffers.written()
        except Exception as error:  # noqa: BLE001 - whatever it is, the step can be taken as ever
            buffers.put_back()
            self._forget()
            self._refuse(" ".join([f"{type(error).__name__}:", *str(error).splitlines()[:1]]))
            return None
        finally:
            learn.training_step.update.clear()
        return replay

    def _refuse(self, why: str) -> None:
        self._refused = True
        warnings.warn(f'compile="step": steps are not recorded: {why}', stacklevel=2)


class _Buffers:
    """Which tensors the buffers of `modules` are, and how often they were written to."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        owners = [part._buffers for module in modules for part in module.modules()]  # noqa: SLF001
        self._places = [(owner, name) for owner in owners for name in owner]
        self._tensors = [owner[name] for owner, name in self._places]
        self._versions = list(map(_version, self._tensors))

    def written(self) -> list[Tensor]:
        """Return those that were written to since.

        Raises:
            ValueError: one is another tensor now, which a replay could not make it.
        """
        now = [owner.get(name) for owner, name in self._places]
        if not all(map(is_, now, self._tensors)):
            raise ValueError("the model replaces a buffer, instead of writing to it")
        pairs = zip(self._tensors, self._versions, strict=True)
        return [b for b, version in pairs if b is not None and _version(b) != version]

    def put_back(self) -> None:
        """Make each the tensor that it was."""
        for (owner, name), tensor in zip(self._places, self._tensors, strict=True):
            owner[name] = tensor


def _version(buffer: Tensor | None) -> int:
    return 0 if buffer is None or buffer.is_inference() else buffer._version  # noqa: SLF001


def _trained(learn: Trainer) -> list[int]:
    """Return where the parameters are that are trained: kernels know them by that."""
    return [p.data_ptr() for p in learn.training_step.update.parameters() if p.requires_grad]


def _shape(value: Any) -> Any:
    """Return what has to be the same in two batches for the same kernels to be right.

    Raises:
        TypeError: it holds something that a recording would keep as it is.
    """
    if isinstance(value, Tensor) and value.layout is torch.strided and not value.is_nested:
        return value.shape, value.dtype
    if type(value) is dict:
        return tuple((key, _shape(item)) for key, item in value.items())
    if type(value) in (tuple, list):
        return tuple(map(_shape, value))
    if value is None:
        return None
    raise TypeError(f"the batch holds a {type(value).__name__}, which would stay as it is")
