"""Metrics: numbers of a whole validation set, exact however it was cut into batches.

Three kinds are accepted wherever metrics are:

* a `MeanMetric` such as `accuracy`: a mean over samples; two sums are kept on the device, nothing
  else;
* any other function of (pred, target): it is called once, with the predictions and targets of the
  whole set, which are kept on the device until then;
* any object with `update(pred, target)`, `compute()` and `reset()`, torchmetrics for one.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from onecycle import checks
from onecycle.batch import concat, to_device
from onecycle.distributed import World

RESERVED = ("epoch", "train_loss", "valid_loss", "lr", "seconds", "time")


@runtime_checkable
class MetricObject(Protocol):
    """An object that gathers batches and computes one number, as in torchmetrics."""

    def update(self, pred: Any, target: Any) -> object:
        """Take one batch."""
        ...

    def compute(self) -> Any:
        """Return the value over all batches since the last reset."""
        ...

    def reset(self) -> object:
        """Forget all batches."""
        ...


Metric = Callable[[Any, Any], Any] | MetricObject


def _identity(value: Tensor) -> Tensor:
    return value


class MeanMetric:
    """A metric that is a mean over samples, from a function that returns one value for each sample.

    Use it as a decorator. Called on tensors it returns the mean; over a set it is the exact mean of
    all samples.

    Args:
        each: (pred, target) -> one value for each sample.
        finish: applied to the mean at the very end.
        higher_is_better: which way is better, None does not say; `EarlyStopping` goes by it.

    Raises:
        TypeError: `each` is no function, or `higher_is_better` no bool.

    >>> @MeanMetric
    ... def distance(pred, target):
    ...     return (pred - target).abs()
    >>> distance(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    tensor(1.)
    """

    def __init__(
        self,
        each: Callable[..., Tensor],
        finish: Callable[[Tensor], Tensor] = _identity,
        *,
        higher_is_better: bool | None = None,
    ) -> None:
        if not callable(each):
            raise TypeError(f"each must be a function of (pred, target), got {each!r}")
        functools.update_wrapper(self, each)
        self.__name__: str = getattr(each, "__name__", type(each).__name__)
        self.each = each
        self.finish = finish
        if higher_is_better is not None:
            checks.flag("higher_is_better", higher_is_better)
        self.higher_is_better = higher_is_better

    def __call__(self, pred: Tensor, target: Tensor, **options: Any) -> Tensor:
        """Return the metric of one pair of tensors."""
        return self.finish(_wide(self.each(pred, target, **options)).mean()).float()


def is_plain_mean(metric: Any) -> bool:
    """Tell whether a metric is the mean of a value for each sample, and nothing else.

    >>> is_plain_mean(accuracy), is_plain_mean(rmse)
    (True, False)
    """
    own = metric.func if isinstance(metric, functools.partial) else metric
    return isinstance(own, MeanMetric) and own.finish is _identity


def _scores_of_classes(pred: Tensor, target: Tensor) -> Tensor:
    """Refuse one column, whose largest is always class 0, and targets that would broadcast."""
    if pred.ndim < 2 or pred.shape[1] < 2:
        raise ValueError(
            f"pred must have one score for each of at least two classes, got {tuple(pred.shape)}; "
            "for one logit a sample use a function such as "
            "lambda pred, target: ((pred > 0) == target).float().mean()"
        )
    if target.shape != pred[:, 0].shape:
        raise ValueError(
            f"target must have the shape {tuple(pred[:, 0].shape)} to go with pred "
            f"{tuple(pred.shape)}, got {tuple(target.shape)}"
        )
    return pred


def _same_shape(pred: Tensor, target: Tensor) -> None:
    """Refuse shapes that would broadcast: (64, 1) against (64,) is 64 x 64 differences."""
    if pred.shape != target.shape:
        raise ValueError(
            f"pred and target must have one shape, got {tuple(pred.shape)} and "
            f"{tuple(target.shape)}; add or drop the dimension of size 1 on one of them"
        )


@functools.partial(MeanMetric, higher_is_better=True)
def accuracy(pred: Tensor, target: Tensor) -> Tensor:
    """Share of samples whose largest score is the target's.

    Shapes: pred (N, C, ...), target (N, ...) of classes.

    >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    tensor(0.5000)
    """
    return _scores_of_classes(pred, target).argmax(1) == target


@functools.partial(MeanMetric, higher_is_better=False)
def error_rate(pred: Tensor, target: Tensor) -> Tensor:
    """One minus `accuracy`.

    >>> error_rate(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    tensor(0.5000)
    """
    return _scores_of_classes(pred, target).argmax(1) != target


@functools.partial(MeanMetric, higher_is_better=True)
def top_k_accuracy(pred: Tensor, target: Tensor, k: int = 5) -> Tensor:
    """Share of samples whose target is among the `k` largest scores: pred (N, C), target (N,).

    Choose k by `functools.partial(top_k_accuracy, k=3)`. More than C means C.

    >>> top_k_accuracy(torch.tensor([[0.1, 0.2, 0.7]]), torch.tensor([1]), k=2)
    tensor(1.)
    """
    classes = _scores_of_classes(pred, target).shape[1]
    best = pred.topk(min(checks.integer("k", k), classes), dim=1).indices
    return (best == target.unsqueeze(1)).any(1)


@functools.partial(MeanMetric, higher_is_better=False)
def mse(pred: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over all elements; pred and target of one shape.

    >>> mse(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
    tensor(2.)
    """
    _same_shape(pred, target)
    return (pred - target) ** 2


@functools.partial(MeanMetric, higher_is_better=False)
def mae(pred: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error over all elements; pred and target of one shape.

    >>> mae(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
    tensor(1.)
    """
    _same_shape(pred, target)
    return (pred - target).abs()


@functools.partial(MeanMetric, finish=torch.sqrt, higher_is_better=False)
def rmse(pred: Tensor, target: Tensor) -> Tensor:
    """Root of the mean squared error over all elements of the set, not a mean of roots.

    >>> rmse(torch.tensor([1.0, 5.0]), torch.tensor([1.0, 1.0]))
    tensor(2.8284)
    """
    _same_shape(pred, target)
    return (pred - target) ** 2


class Mean:
    """A running mean on the device: a sum and the number of values in it."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.weight = 0

    def add(self, total: Tensor, weight: int) -> None:
        """Take the sum of `weight` values."""
        self.total = total if self.total is None else self.total + total
        self.weight += weight

    def value(self) -> Tensor:
        """Return the mean of all values taken."""
        return torch.tensor(float("nan")) if self.total is None else self.total / self.weight


class Scores:
    """The loss and the metrics of one pass over a set.

    Args:
        metrics: as the module describes; names must differ.
        world: the processes, if several have a part of the set each.
        device: where predictions and targets are.

    Raises:
        TypeError: something that is no metric.
        ValueError: two metrics of one name, or the name of another column.
    """

    def __init__(
        self,
        metrics: Sequence[Metric] | Mapping[str, Metric],
        world: World | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.loss = Mean()
        self.world = World() if world is None else world
        self.device = torch.device(device)
        self.gatherers = {
            name: _gatherer(name, metric, alone=self.world.alone)
            for name, metric in named(metrics).items()
        }

    def add(self, pred: Any, target: Any, loss: Tensor, n: int) -> None:
        """Take one batch of `n` samples."""
        self.loss.add(_wide(loss) * n, n)
        for name, gatherer in self.gatherers.items():
            _call(name, gatherer.update, pred, target)

    def compute(self) -> dict[str, float]:
        """Return every number, read from the device once.

        Raises:
            ValueError: there was no batch, or a metric raised or returned something else than one
            number.
        """
        if not self.world.alone:
            self._join()
        if not self.loss.weight:
            raise ValueError("valid_loss: the data is empty, it must yield at least one batch")
        values = [self.loss.value()]
        for name, gatherer in self.gatherers.items():
            values.append(_scalar(name, _call(name, gatherer.compute)))
        # One type and place for all: mps has no double precision.
        numbers = torch.stack([value.to(values[0]) for value in values]).tolist()
        return dict(zip(["valid_loss", *self.gatherers], numbers, strict=True))

    def _join(self) -> None:
        """Take in what the other processes have seen, in the order of the set."""
        means = [self.loss, *(g.mean for g in self.gatherers.values() if hasattr(g, "mean"))]
        own = [(None if m.total is None else m.total.cpu(), m.weight) for m in means]
        everyone = self.world.gather(own)
        for mean, parts in zip(means, zip(*everyone, strict=True), strict=True):
            mean.total, mean.weight = None, 0
            for total, weight in parts:
                if total is not None:
                    mean.add(total, weight)
        for gatherer in self.gatherers.values():
            if hasattr(gatherer, "pairs"):
                gatherer.pairs = to_device(self.world.merged(gatherer.pairs), self.device)


def named(metrics: Metric | Sequence[Metric] | Mapping[str, Metric]) -> dict[str, Metric]:
    """Return the metrics by name, in order: a mapping as it is, others by their own names.

    One metric by itself counts as a list of one.

    >>> list(named([accuracy, functools.partial(top_k_accuracy, k=3)]))
    ['accuracy', 'top_k_accuracy']
    >>> list(named({"top 3": functools.partial(top_k_accuracy, k=3)}))
    ['top 3']
    """
    if not isinstance(metrics, (list, tuple, Mapping)):
        metrics = cast("Sequence[Metric]", [metrics])
    items: Iterable[tuple[Any, Metric]]
    items = metrics.items() if isinstance(metrics, Mapping) else ((None, m) for m in metrics)
    result: dict[str, Metric] = {}
    for given, metric in items:
        if isinstance(metric, type):
            raise TypeError(f"metrics must hold objects, not a class: {metric.__name__}(...)")
        if not (callable(metric) or isinstance(metric, MetricObject)):
            raise TypeError(
                "metrics must hold functions of (pred, target) or objects with update, compute "
                f"and reset, got {metric!r}"
            )
        if given is not None and not (isinstance(given, str) and given.strip()):
            raise ValueError(f"metrics must have names that are text, got {given!r}")
        name = _name(metric) if given is None else given
        if name in result or name in RESERVED:
            raise ValueError(
                f"metrics must have names of their own, {name!r} is taken; give a dict by name"
            )
        result[name] = metric
    return result


def higher_is_better(metric: Metric | None) -> bool | None:
    """Return what a metric says of itself, as those of torchmetrics do; None if it does not.

    >>> higher_is_better(functools.partial(top_k_accuracy, k=3))
    True
    >>> higher_is_better(lambda pred, target: 0.0)
    """
    while isinstance(metric, functools.partial):
        metric = metric.func
    said = getattr(metric, "higher_is_better", None)
    return None if said is None else bool(said)


class _MeanGatherer:
    """Keeps the sum and the count of a MeanMetric."""

    def __init__(self, metric: MeanMetric, options: dict[str, Any]) -> None:
        self.metric, self.options, self.mean = metric, options, Mean()

    def update(self, pred: Any, target: Any) -> None:
        each = _wide(self.metric.each(pred, target, **self.options))
        self.mean.add(each.sum(), each.numel())

    def compute(self) -> Tensor:
        return self.metric.finish(self.mean.value())


class _WholeSetGatherer:
    """Keeps all predictions and targets for a function that is no mean."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.function = function
        self.pairs: list[tuple[Any, Any]] = []

    def update(self, pred: Any, target: Any) -> None:
        self.pairs.append((pred, target))

    def compute(self) -> Any:
        preds, targets = zip(*self.pairs, strict=True)
        return self.function(concat(list(preds)), concat(list(targets)))


class _Replayed:
    """Keeps all predictions and targets for an object, which sees those of all processes then."""

    def __init__(self, metric: MetricObject) -> None:
        self.metric = metric
        self.pairs: list[tuple[Any, Any]] = []

    def update(self, pred: Any, target: Any) -> None:
        self.pairs.append((pred, target))

    def compute(self) -> Any:
        self.metric.reset()
        with _by_itself(self.metric):
            for pred, target in self.pairs:
                self.metric.update(pred, target)
            return self.metric.compute()


@contextmanager
def _by_itself(metric: Any) -> Iterator[None]:
    """Keep a metric of torchmetrics from joining what all processes have seen once more."""
    own: Iterable[Any] = metric.modules() if isinstance(metric, nn.Module) else ()
    name = "distributed_available_fn"
    parts = [(part, getattr(part, name)) for part in own if hasattr(part, name)]
    try:
        for part, _ in parts:
            part.distributed_available_fn = lambda: False
        yield
    finally:
        for part, before in parts:
            part.distributed_available_fn = before


def _gatherer(
    name: str, metric: Metric, *, alone: bool
) -> MetricObject | _MeanGatherer | _WholeSetGatherer | _Replayed:
    if isinstance(metric, MeanMetric):
        return _MeanGatherer(metric, {})
    if isinstance(metric, functools.partial) and isinstance(metric.func, MeanMetric):
        return _MeanGatherer(metric.func, metric.keywords)
    if isinstance(metric, MetricObject):
        _call(name, metric.reset)
        return metric if alone else _Replayed(metric)
    return _WholeSetGatherer(metric)


def _name(metric: Any) -> str:
    if isinstance(metric, functools.partial):
        return _name(metric.func)
    return str(getattr(metric, "__name__", None) or type(metric).__name__)


def _scalar(name: str, value: Any) -> Tensor:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"metrics: {name!r} must return one number, got {value!r}") from None
    if tensor.numel() != 1:
        shape = tuple(tensor.shape)
        raise ValueError(f"metrics: {name!r} must return one number, got a shape of {shape}")
    return tensor.detach().reshape(())


def _call(name: str, method: Callable[..., Any], *args: Any) -> Any:
    """Call a user's metric; what goes wrong in it is told with its name."""
    try:
        return method(*args)
    except Exception as error:
        raise ValueError(f"metrics: {name!r} raised {type(error).__name__}: {error}") from error


def _wide(value: Tensor) -> Tensor:
    """Return `value` in double precision, so that sums of counts are exact; mps has single only."""
    return value.float() if value.device.type == "mps" else value.double()
