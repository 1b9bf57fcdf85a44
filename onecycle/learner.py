"""The Learner: owns data, model and optimizer; what a user calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onecycle import batch as batches
from onecycle import checkpoint, checks, optimizers, plot, state
from onecycle.callback import (
    Callback,
    as_callbacks,
)
from onecycle.callbacks.lr_finder import LRFind, LRFinder
from onecycle.callbacks.progress import ProgressBar
from onecycle.callbacks.recorder import Recorder
from onecycle.callbacks.scheduler import OneCycleScheduler, ParamScheduler
from onecycle.data.loaders import DataLoaders, as_loaders, check_loader
from onecycle.evaluation import Evaluator, finished
from onecycle.loop import Loop
from onecycle.metrics import Metric, Scores, named
from onecycle.optimizers import LR, OptFunc, Splitter
from onecycle.schedules import Schedule, progress, scaled
from onecycle.step import TrainingStep, activation, check_scalar, infer_loss


class Learner:
    """Data, model and optimizer, and the loop that trains one with the others.

    Args:
        data: `DataLoaders`, or a pair (train, valid) of iterables of batches; valid may be None. A
            batch is (inputs, target), (input, input, target) or a mapping with the target under
            "target", "targets", "label", "labels" or "y".
        model: it is moved to `device`.
        loss_func: (pred, target) -> scalar tensor. None takes cross entropy for integer targets and
            the mean squared error for floats.
        opt_func: a torch optimizer class, a factory that takes parameter groups, or an optimizer.
        metrics: functions of (pred, target) and others, a list or a dict by name; see
            `onecycle.metrics`.
        callbacks: for every fit; classes without arguments are made.
        wd: weight decay, not applied to biases and norm layers; None leaves the optimizer's own.
        splitter: model -> lists of parameters, one for each layer group.
        device: None takes cuda, else mps, else cpu.
        precision: "fp32", "bf16" or "fp16".
        accumulate: batches for each optimizer step.
        clip: largest norm of the gradients.

    Attributes that hooks read: `epoch` (of `n_epochs`, from 0), `step` (updates done, of
    `total_steps`), `batch_index`, `progress`, `batch`, `pred`, `loss`, `scores` (of this epoch's
    validation), `model`, `opt`, `data`, `recorder`.

    Raises:
        ValueError, TypeError: an argument out of its range or of the wrong type; it names the
        argument.

    >>> from onecycle.data import digits
    >>> from onecycle.models import simple_cnn
    >>> learn = Learner(digits(), simple_cnn((1, 16, 32, 10)))
    >>> with learn.no_logging():
    ...     learn.fit_one_cycle(1, max_lr=1e-2)
    >>> len(learn.recorder.losses)
    23
    """

    def __init__(
        self,
        data: DataLoaders | tuple[Iterable[Any], Iterable[Any] | None],
        model: nn.Module,
        loss_func: Callable[[Any, Any], Tensor] | None = None,
        opt_func: OptFunc | torch.optim.Optimizer = torch.optim.AdamW,
        metrics: Sequence[Metric] | Mapping[str, Metric] = (),
        callbacks: Iterable[Callback | type[Callback]] = (),
        *,
        wd: float | None = 0.01,
        splitter: Splitter | None = None,
        device: torch.device | str | None = None,
        precision: str = "fp32",
        accumulate: int = 1,
        clip: float | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
        if any(nn.parameter.is_lazy(p) for p in model.parameters()):
            raise ValueError("model has lazy parameters: run one batch through it first")
        if loss_func is not None and not callable(loss_func):
            raise TypeError(f"loss_func must be a function of (pred, target), got {loss_func!r}")
        if isinstance(loss_func, type):
            raise TypeError(f"loss_func must be a function, got a class: {loss_func.__name__}()")
        self.data = as_loaders(data)
        self.metrics = named(metrics)
        for metric in self.metrics.values():
            if isinstance(metric, nn.Module):
                metric.to(batches.as_device(device))
        self.callbacks = as_callbacks(callbacks)
        self.device = batches.as_device(device)
        self.model = model.to(self.device)
        self.loss_func = (
            loss_func.to(self.device) if isinstance(loss_func, nn.Module) else loss_func
        )
        self.opt = optimizers.build(self.model, opt_func, wd, splitter)
        self.training_step = TrainingStep(self.opt, self.device, precision, accumulate, clip)
        self.recorder = Recorder()
        self.display = ProgressBar()
        self.epoch = self.n_epochs = self.step = self.total_steps = self.batch_index = 0
        self.batches_per_epoch = self.data.steps_per_epoch
        self.scores: dict[str, float] = {}
        self.batch: Any = None
        self.pred: Any = None
        self.loss: Any = None
        self.loop = Loop()
        self._inferred: Callable[[Any, Any], Tensor] | None = None

    # ---- training ------------------------------------------------------------------------------

    def fit(
        self,
        epochs: int,
        lr: LR | None = None,
        *,
        wd: float | None = None,
        schedule: Schedule | None = None,
        callbacks: Iterable[Callback | type[Callback]] = (),
    ) -> None:
        """Train for `epochs` epochs at `lr`, the same at every step unless a schedule moves it.

        Args:
            epochs: at least 1.
            lr: a number, `slice(first, last)`, `slice(last)` or one for each layer group; None is
                the optimizer's.
            wd: weight decay for this fit only.
            schedule: function of progress (0 at the first step, 1 at the last) that multiplies
                `lr`, such as `linear(1, 0)` or `one_cycle(1.0)`.
            callbacks: for this fit only, after the learner's own.

        Hyper-parameters of the optimizer are what they were, once the fit is over.
        """
        epochs = checks.integer("epochs", epochs)
        lrs = self._lrs("lr", lr)
        scheduler = None
        if schedule is not None:
            if not callable(schedule):
                raise TypeError(f"schedule must be a function of progress, got {schedule!r}")
            scheduler = ParamScheduler({"lr": [scaled(schedule, base) for base in lrs]})
        self._fit(range(epochs), epochs, lrs, wd, scheduler, callbacks)

    def fit_one_cycle(
        self,
        epochs: int,
        max_lr: LR | None = None,
        *,
        moms: tuple[float, float] | None = (0.95, 0.85),
        div_factor: float = 25.0,
        pct_start: float = 0.3,
        final_div: float | None = None,
        warmup: str = "linear",
        three_phase: bool = False,
        wd: float | None = None,
        callbacks: Iterable[Callback | type[Callback]] = (),
        tot_epochs: int | None = None,
        start_epoch: int | None = None,
    ) -> None:
        """Train for `epochs` epochs by the 1cycle policy: one cycle over all of them.

        Args:
            epochs: at least 1.
            max_lr: the peak, as `lr` of `fit`; what `lr_find` returns fits. None is the optimizer's
                learning rate.
            moms: see `OneCycleScheduler`, and so for `div_factor`, `pct_start`, `final_div`,
                `warmup`, `three_phase`.
            div_factor: max_lr over the first value.
            pct_start: share of the steps before the peak.
            final_div: max_lr over the last value.
            warmup: "linear" or "cos".
            three_phase: the original three linear phases.
            wd: weight decay for this fit only.
            callbacks: for this fit only.
            tot_epochs: epochs of the whole cycle, when this call trains only a part of it.
                None means start_epoch + epochs.
            start_epoch: epochs of the cycle that earlier calls have trained.
        """
        epochs = checks.integer("epochs", epochs)
        first = 0 if start_epoch is None else checks.integer("start_epoch", start_epoch, low=0)
        total = first + epochs if tot_epochs is None else checks.integer("tot_epochs", tot_epochs)
        if first + epochs > total:
            raise ValueError(
                f"epochs={epochs} from start_epoch={first} go beyond tot_epochs={total}, "
                f"{max(0, total - first)} are left"
            )
        lrs = self._lrs("max_lr", max_lr)
        cycle = OneCycleScheduler(
            lrs,
            moms,
            div_factor=div_factor,
            pct_start=pct_start,
            final_div=final_div,
            warmup=warmup,
            three_phase=three_phase,
        )
        self._fit(range(first, first + epochs), total, lrs, wd, cycle, callbacks)

    def lr_find(
        self,
        start_lr: float = 1e-7,
        end_lr: float = 10.0,
        num_it: int = 100,
        stop_div: bool = True,
    ) -> LRFind:
        """Sweep the learning rate up and return the suggestion; it leaves no other trace.

        Model, optimizer, generators, loader and history are restored bit for bit, also after an
        error or Ctrl-C. Callbacks do not run, so batches must fit the model as they come. A
        notebook shows the picture; elsewhere `learn.recorder.plot()` draws it.

        Args:
            start_lr: the first learning rate.
            end_lr: the last.
            num_it: steps, over as many epochs as it takes.
            stop_div: stop when the loss diverges.

        Raises:
            ValueError, TypeError: an argument out of its range; the loss was not finite at the
            first step.
        """
        finder = LRFinder(start_lr, end_lr, num_it, stop_div)
        before = self._counters()
        try:
            with state.preserved(self._modules, self.opt, self.training_step, self.data.train):
                self._run(range(num_it), num_it, [finder], aside=True)
        finally:
            vars(self).update(before)
        found = self.recorder.lr_find = finder.result()
        if plot.in_notebook():
            found.plot()
        return found

    # ---- the loop ------------------------------------------------------------------------------

    def _fit(
        self,
        epochs: range,
        n_epochs: int,
        lrs: list[float],
        wd: float | None,
        scheduler: Callback | None,
        callbacks: Iterable[Callback | type[Callback]],
    ) -> None:
        """Run with every callback, and give the hyper-parameters back."""
        decay = None if wd is None else checks.real("wd", wd, low=0.0)
        if decay is not None and not optimizers.has(self.opt, "wd"):
            raise ValueError(f"wd: {type(self.opt).__name__} has no weight decay, leave it out")
        given = [*as_callbacks(self.callbacks), *as_callbacks(callbacks)]
        first: list[Callback] = [self.recorder] if scheduler is None else [self.recorder, scheduler]
        everyone = [*first, *given, self.display]
        with optimizers.preserved(self.opt):
            optimizers.write(self.opt, "lr", lrs)
            if decay is not None:
                optimizers.write(self.opt, "wd", [decay])
            self._run(epochs, n_epochs, everyone)

    def _run(
        self, epochs: range, n_epochs: int, callbacks: list[Callback], *, aside: bool = False
    ) -> None:
        self._inferred = None
        self.loop.run(self, epochs, n_epochs, callbacks, aside=aside)

    def fire(self, event: str) -> None:
        """Call the hooks of `event`."""
        self.loop.fire(event, self)

    @property
    def progress(self) -> float:
        """How far the planned run is: 0 at its first step, 1 at its last."""
        return progress(self.step, self.total_steps)

    @property
    def last_batch(self) -> bool:
        """Whether this batch is the last of its epoch."""
        return self.batch_index + 1 == self.batches_per_epoch

    def compute_loss(self, pred: Any, target: Any) -> Any:
        """Return the loss, by a function inferred from the fit's first target if none was given."""
        loss_func = self.loss_func
        if loss_func is None:
            loss_func = self._inferred or infer_loss(target)
            if self.loop.running:
                self._inferred = loss_func
        return loss_func(pred, target)

    # ---- evaluation: leaves no trace -----------------------------------------------------------

    def validate(self, dl: Iterable[Any] | None = None) -> dict[str, float]:
        """Return valid_loss and every metric over `dl` or the validation data; no callback runs."""
        return self.evaluate(self._loader(dl))

    def evaluate(
        self, loader: Iterable[Any], watch: Callable[[Any, Any, Any], None] | None = None
    ) -> dict[str, float]:
        """Return the scores over `loader`; call watch(batch, pred, loss) for every batch."""
        scores = Scores(self.metrics)

        def take(batch: Any, target: Any, pred: Any) -> None:
            batches.require_target(batch, target)
            loss = check_scalar(self.compute_loss(pred, target))
            scores.add(batches.widened(pred), target, loss, batches.samples(batch))
            if watch is not None:
                watch(batch, pred, loss)

        self._evaluator(loader, take, aside=watch is None)
        return scores.compute()

    def get_preds(
        self, dl: Iterable[Any] | None = None, *, activate: bool = True
    ) -> tuple[Any, Any]:
        """Return (predictions, targets) over `dl` or the validation data, in its order, on the CPU.

        Args:
            dl: batches with targets, or of inputs alone; then the targets are None.
            activate: turn the model's output into probabilities where the loss works on logits:
                softmax over dimension 1 for cross entropy, sigmoid for binary cross entropy, exp
                for negative log likelihood.
        """
        finish = self._activation() if activate else None
        return self._evaluator.collect(self._loader(dl), finish)

    def predict(self, x: Any) -> Any:
        """Return predictions, as `get_preds` makes them, for one batch (N, ...) of inputs."""
        return finished(self._evaluator.predict(x), self._activation())

    # ---- files and display ---------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write model and optimizer to `path`, whole or not at all, and return the path."""
        return checkpoint.save(path, checkpoint.states(self.model, self.opt))

    def load(self, path: str | os.PathLike[str], *, with_opt: bool = True) -> Learner:
        """Take model and, `with_opt`, optimizer from a file of `save`; return the learner.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged or of another model or optimizer; the learner is as it was.
        """
        checkpoint.restore(path, self.model, self.opt if with_opt else None)
        return self

    def no_bar(self) -> AbstractContextManager[None]:
        """Show no bar in the block; the table stays."""
        return self._display(ProgressBar(bar=False, table=self.display.table))

    def no_logging(self) -> AbstractContextManager[None]:
        """Show neither bar nor table in the block."""
        return self._display(ProgressBar(bar=False, table=False))

    @contextmanager
    def _display(self, display: ProgressBar) -> Iterator[None]:
        before, self.display = self.display, display
        try:
            yield
        finally:
            self.display = before

    # ---- small parts ---------------------------------------------------------------------------

    @property
    def _evaluator(self) -> Evaluator:
        return Evaluator(self._modules, self.device, self.training_step.autocast)

    def _loader(self, dl: Iterable[Any] | None) -> Iterable[Any]:
        loader = self.data.valid if dl is None else dl
        if loader is None:
            raise ValueError("dl must be given: this learner has no validation data")
        check_loader("dl", loader)
        return loader

    def _activation(self) -> Callable[[Tensor], Tensor] | None:
        loss_func = self._inferred if self.loss_func is None else self.loss_func
        if loss_func is None:
            with self._evaluator.kept(self.data.train):
                batch = batches.to_device(next(iter(self.data.train)), self.device)
            loss_func = self._inferred = infer_loss(batches.split(batch)[1])
        return activation(loss_func)

    @property
    def _modules(self) -> list[nn.Module]:
        """Everything that training can change beside the optimizer."""
        loss = [self.loss_func] if isinstance(self.loss_func, nn.Module) else []
        return [self.model, *loss]

    def _lrs(self, name: str, lr: LR | None) -> list[float]:
        """Return one learning rate for each layer group; None is the optimizer's own."""
        if lr is None:
            return optimizers.current(self.opt, "lr")
        if isinstance(lr, LRFind) and lr != lr:
            raise ValueError(f"{name}: lr_find gave no learning rate: {lr.reason}")
        return optimizers.spread(name, lr, optimizers.n_groups(self.opt))

    def _counters(self) -> dict[str, Any]:
        names = ("epoch", "n_epochs", "step", "total_steps", "batch_index", "batches_per_epoch")
        return {name: getattr(self, name) for name in (*names, "scores", "_inferred")}
