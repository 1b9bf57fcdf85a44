"""How the model is run: in which precision and memory format, compiled or as it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from onecycle import batch as batches
from onecycle import checks, shards
from onecycle.distributed import World

PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "auto")
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
OF_BUFFERS = "forward_sync_buffers", "broadcast_buffers"  # how torch calls it now, and before
Compile = bool | str | Mapping[str, Any]


class Network:
    """The model of a Learner, and everything that decides how fast it is run.

    Neither option changes the model's parameters or the names in its `state_dict`.

    Args:
        model: on `device`.
        device: where it is.
        precision: "fp32"; "tf32", which also lets matrix products on cuda round their inputs to 10
            bits, as torch's convolutions do anyway; "bf16" or "fp16" for autocast around forward
            and loss, fp16 with a scaled loss; "auto" is the best of these that the device is made
            for.
        channels_last: keep images and filters with their channels last in memory, which
            convolutions in half precision are fastest with.
        compile: True for torch.compile, or a mapping of its options; "step" records a whole
            training step as a CUDA graph, see `onecycle.recorded`.
        ddp: options of DistributedDataParallel, for several processes.

    Raises:
        ValueError, TypeError: an argument out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        precision: str = "fp32",
        *,
        channels_last: bool = False,
        compile: Compile = False,  # noqa: A002 - torch's own word
        ddp: Mapping[str, Any] | None = None,
    ) -> None:
        self.device = device
        self.ddp = dict(ddp or {})
        self.precision = resolved(checks.choice("precision", precision, PRECISIONS), device)
        self.channels_last = checks.flag("channels_last", channels_last)
        self.compile = _checked(compile)
        self.half = HALF.get(self.precision)
        self.parallel: DistributedDataParallel | None = None  # in a run of several processes
        self._rebuilds = self._reduced = False
        self.model = model

    @property
    def model(self) -> nn.Module:
        """The model; another one is laid out and compiled as the first."""
        return self._model

    @model.setter
    def model(self, model: nn.Module) -> None:
        self.sharded = shards.is_sharded(model)
        synced = any(isinstance(part, nn.SyncBatchNorm) for part in model.modules())
        self._exchanges = self.sharded or synced
        if self.sharded and (self.channels_last or self.ddp):
            name = "channels_last" if self.channels_last else "ddp"
            raise ValueError(f"{name}: a model of fully_shard cannot have it, leave it out")
        if self.channels_last:
            _lay_out(model)
        run: Callable[..., Any] = model
        if self.compile is True or isinstance(self.compile, Mapping):
            run = _compiled(model, {} if self.compile is True else self.compile)
        self._model, self._run = model, run

    @property
    def compiled(self) -> bool:
        """Whether hooks on parts of the model are not called."""
        return self._run is not self.model

    @property
    def joins_forward(self) -> bool:
        """Whether processes exchange something in a forward pass, and so all have to make it."""
        return self._exchanges or self._rebuilds

    def __call__(self, inputs: Any) -> Any:
        """Return the model's output; the caller chooses precision, mode and gradients."""
        if self.channels_last:
            inputs = with_channels_last(inputs)
        pred = batches.forward(self._run, inputs)
        if self.sharded and not torch.is_grad_enabled():
            self.reshard()
        return pred

    def reshard(self) -> None:
        """No backward pass follows, so the parameters need not stay gathered."""
        if self.sharded:
            shards.reshard(self.model)

    def trained(self, inputs: Any) -> Any:
        """Return the model of `inputs` in training; in several processes gradients are theirs."""
        if self.parallel is None:
            return self(inputs)
        if self.channels_last:
            inputs = with_channels_last(inputs)
        pred = batches.forward(self.parallel, inputs)
        self._rebuilds = self._rebuilds and not self._reduced
        return pred

    @contextmanager
    def together(self, world: World) -> Iterator[None]:
        """Train together with the other processes in the block, by DistributedDataParallel.

        A model of `fully_shard` does so by itself. Its gradients are the mean of all processes
        after every batch, accumulated or not: else each would keep those of the whole model.
        """
        if self.sharded:
            shards.check(self.model, world.size)
        if self.compile == "step" and (self.sharded or not world.alone):
            raise ValueError('compile="step" records a step of one process: use compile=True here')
        if world.alone or self.sharded:
            yield
            return
        # Buffers follow the first process, too, but where all have met.
        own = OF_BUFFERS[OF_BUFFERS[0] not in inspect.signature(DistributedDataParallel).parameters]
        options: dict[str, Any] = {own: False, **self.ddp}
        self.parallel = DistributedDataParallel(self._run, **options)
        # The forward pass after the first mean of gradients exchanges in which order they came.
        self._rebuilds, self._reduced = True, False
        try:
            yield
        finally:
            self.parallel, self._rebuilds = None, False

    def backward_done(self) -> None:
        """Note that the gradients of a batch have been added, and joined where that was asked."""
        if self.parallel is not None and self.parallel.require_backward_grad_sync:
            self._reduced = True

    def synchronize(self, required: bool) -> None:
        """Say whether the next backward pass is to have the mean of all processes at its end."""
        if self.parallel is not None:
            self.parallel.require_backward_grad_sync = required

    def mean_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Give all processes the mean of what they have gathered, each by itself."""
        for parameter in parameters:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad, dist.ReduceOp.SUM)
                parameter.grad /= dist.get_world_size()

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of forward and loss, for training and evaluation alike."""
        if self.half is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.half)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Set what torch knows for the whole process only, and set it back."""
        if self.precision != "tf32" or self.device.type != "cuda":
            yield
            return
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def resolved(precision: str, device: torch.device) -> str:
    """Return what "auto" stands for on `device`; any other precision is what it is.

    On cuda bf16 where the chip has it, else fp16. On the CPU bf16 where it multiplies matrices of
    bf16 (Intel's AMX), else fp32, and so everywhere else.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    multiplies = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return "bf16" if device.type == "cpu" and multiplies() else "fp32"


def with_channels_last(value: Any) -> Any:
    """Return `value` with the images in it, tensors (N, C, H, W), laid out channels last.

    >>> with_channels_last(torch.zeros(2, 3, 4, 4)).stride()
    (48, 1, 12, 3)
    """
    if isinstance(value, Tensor):
        image = value.ndim == 4
        return value.contiguous(memory_format=torch.channels_last) if image else value
    if isinstance(value, Mapping):
        return {key: with_channels_last(item) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(with_channels_last(item) for item in value)
    return value


def _lay_out(model: nn.Module) -> None:
    """Lay filters out channels last; torch would refuse a model that has some of three dimensions.

    >>> model = nn.Conv2d(3, 8, 5)
    >>> _lay_out(model)
    >>> model.weight.stride()
    (75, 1, 15, 3)
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:
            # Not by `contiguous`: filters of one channel are both, and keep the strides that say
            # otherwise; so would everything that is computed by them.
            tensor.data = tensor.data.to(memory_format=torch.channels_last)


def _compiled(model: nn.Module, options: Mapping[str, Any]) -> Callable[..., Any]:
    try:
        return torch.compile(model, **options)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"compile: torch.compile refuses {dict(options)!r}: {reason}") from error


def _checked(value: Any) -> Compile:
    if not isinstance(value, (bool, Mapping)) and value != "step":
        raise ValueError(
            f'compile must be True, False, "step" or options of torch.compile, got {value!r}'
        )
    return value  # type: ignore[no-any-return]
