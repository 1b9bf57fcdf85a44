"""The Trainer: owns data, model and optimizer, and runs the loop."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from onecycle import (
    arguments,
    checkpoint,
    checks,
    distributed,
    exporting,
    files,
    hints,
    optimizers,
    resuming,
    shard_files,
    shards,
    snapshot,
    together,
)
from onecycle import batch as batches
from onecycle import plan as plans
from onecycle.arguments import KeepTrunk
from onecycle.callback import Callback, as_callbacks, fire
from onecycle.callbacks.live_plot import LivePlot
from onecycle.callbacks.progress import ProgressBar
from onecycle.callbacks.recorder import Recorder
from onecycle.callbacks.saving import Checkpoint
from onecycle.callbacks.short_run import ShortRun
from onecycle.callbacks.time_budget import TimeBudget
from onecycle.callbacks.torch_scheduler import TorchScheduler
from onecycle.data.loaders import DataLoaders, as_loaders, check_loader
from onecycle.data.sharding import part_of, repeats
from onecycle.display import surface
from onecycle.evaluation import Evaluator, finished
from onecycle.found import LRFind
from onecycle.loop import Loop
from onecycle.losses import activation, check_scalar, infer_loss, of_samples
from onecycle.metrics import Metric, Scores, named
from onecycle.network import Compile, Network
from onecycle.notes import note
from onecycle.optimizers import LR, Opt
from onecycle.parts import Splitter
from onecycle.schedules import (
    Schedule,
    progress,
)
from onecycle.signals import Cancel
from onecycle.step import TrainingStep
from onecycle.trunk import Trunk, TrunkKeeper

if TYPE_CHECKING:
    from typing_extensions import Self


class Rehearse(Protocol):
    """What `Trainer.rehearsal` yields."""

    def __call__(
        self, steps: int, callbacks: Sequence[Callback], then: Callable[[], Any] = ...
    ) -> Any:
        """Train for `steps` steps and return what `then` returns."""
        ...


class Trainer:
    """What every way to train stands on; `Learner` adds the ways, and explains the arguments."""

    def __init__(
        self,
        data: DataLoaders | tuple[Iterable[Any], Iterable[Any] | None],
        model: nn.Module,
        loss_func: Callable[[Any, Any], Tensor] | None = None,
        opt_func: Opt = torch.optim.AdamW,
        metrics: Metric | Sequence[Metric] | Mapping[str, Metric] = (),
        callbacks: Iterable[Callback | type[Callback]] = (),
        *,
        wd: float | None = 0.01,
        splitter: Splitter | None = None,
        device: torch.device | str | None = None,
        precision: str = "fp32",
        channels_last: bool = False,
        compile: Compile = False,  # noqa: A002 - torch's own word
        accumulate: int = 1,
        clip: float | None = None,
        on_nan: str = "raise",
        train_bn: bool = True,
        live_plot: bool = False,
        ddp: Mapping[str, Any] | None = None,
        shard: shards.Shard | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
        if any(nn.parameter.is_lazy(p) for p in model.parameters()):
            raise ValueError("model has lazy parameters: run one batch through it first")
        checks.flag("train_bn", train_bn)
        checks.flag("live_plot", live_plot)
        if loss_func is not None and not callable(loss_func):
            raise TypeError(f"loss_func must be a function of (pred, target), got {loss_func!r}")
        if isinstance(loss_func, type):
            raise TypeError(f"loss_func must be a function, got a class: {loss_func.__name__}()")
        self.world = distributed.join()
        self.data = as_loaders(data)
        self.metrics = named(metrics)
        self.device = batches.as_device(distributed.own_device(device))
        for metric in self.metrics.values():
            if isinstance(metric, nn.Module):
                metric.to(self.device)
        self.callbacks = [*as_callbacks(callbacks), *([LivePlot()] if live_plot else [])]
        model = model.to(self.device)
        if self.world.size > 1 and not shards.is_sharded(model):
            self.world.meet("Learner")
            distributed.synchronize(model)
        if shard is not None:
            shards.apply(shard, model, self.world.size)
        self.network = Network(
            model,
            self.device,
            precision,
            channels_last=channels_last,
            compile=compile,
            ddp=ddp,
        )
        self.loss_func = (
            loss_func.to(self.device) if isinstance(loss_func, nn.Module) else loss_func
        )
        self.opt = optimizers.build(self.model, opt_func, wd, splitter)
        self._whole = self.opt is not opt_func
        self.training_step = TrainingStep(self.opt, self.network, accumulate, clip, on_nan)
        self.train_bn = train_bn
        self.recorder = Recorder()
        self.display = ProgressBar(bar=self.world.rank == 0, table=self.world.rank == 0)
        self.epoch = self.n_epochs = self.stop_epoch = 0
        self.step = self.total_steps = self.batch_index = 0
        self.batches_per_epoch = self.data.steps_per_epoch
        self.scores: dict[str, float] = {}
        self.batch: Any = None
        self.pred: Any = None
        self.loss: Any = None
        self.loop = Loop()
        self.plan: dict[str, Any] = {}
        self.hints = True
        self.budget: TimeBudget | None = None  # of this fit
        self.trunk: Trunk | None = None  # of the last fit
        self.scheduler: Any = None  # who moves the learning rate in this fit
        self._begun = 0
        self._inferred: Callable[[Any, Any], Tensor] | None = None

    # ---- training ------------------------------------------------------------------------------

    def fit(
        self,
        epochs: int | None = None,
        lr: LR | None = None,
        *,
        minutes: float | None = None,
        wd: float | None = None,
        schedule: Schedule | TorchScheduler | None = None,
        callbacks: Iterable[Callback | type[Callback]] = (),
    ) -> None:
        """Train for `epochs` epochs at `lr`, the same at every step unless a schedule moves it.

        Args:
            epochs: at least 1.
            minutes: train for so long instead, or at most so long. The progress of a schedule is
                then the clock, validations included, and still goes to its end; the run ends
                within a step and a validation of the time.
            lr: a number, `slice(first, last)`, `slice(last)` or one for each layer group. A number
                is for the last group, and the others keep the ratios that the optimizer has. None
                is the optimizer's.
            wd: weight decay for this fit only.
            schedule: function of progress (0 at the first step, 1 at the last) that multiplies
                `lr`, such as `linear(1, 0)` or `wsd()`; or a `TorchScheduler`. Where it asks for
                `epochs`, as `sgdr` does, give it those of this fit. Momentum stays; a
                `ParamScheduler` among the callbacks moves it.
            callbacks: for this fit only, after the learner's own.

        Hyper-parameters of the optimizer are what they were, once the fit is over.
        """
        span = arguments.span_of(epochs, minutes)
        lrs = self._lrs("lr", lr)
        scheduler = None if schedule is None else arguments.scheduler_of(schedule, lrs)
        self._fit("fit", span, span.stop, lrs, wd, scheduler, callbacks, minutes=minutes)

    # ---- the loop ------------------------------------------------------------------------------

    @property
    def data(self) -> DataLoaders:
        """The training and the validation data; in several processes what this one has of them."""
        return self._data

    @data.setter
    def data(self, data: DataLoaders | tuple[Iterable[Any], Iterable[Any] | None]) -> None:
        self._data = as_loaders(data).part(self.world)

    @property
    def model(self) -> nn.Module:
        """What is trained and evaluated; a hook may put another one here, such as a mean of it."""
        return self.network.model

    @model.setter
    def model(self, model: nn.Module) -> None:
        self.network.model = model

    def _fit(
        self,
        method: str,
        epochs: range,
        n_epochs: int,
        lrs: list[float],
        wd: float | None,
        scheduler: Callback | None,
        callbacks: Iterable[Callback | type[Callback]],
        saved: tuple[Path, dict[str, Any]] | None = None,
        *,
        minutes: float | None = None,
        keep_trunk: KeepTrunk = False,
        since: Trunk | None = None,
        asked: Sequence[Any] = (),
    ) -> None:
        """Run with every callback, and give the hyper-parameters back.

        Args:
            method: that was called.
            epochs: to train now.
            n_epochs: of the plan.
            lrs: one for each layer group.
            wd: weight decay, None for the optimizer's.
            scheduler: moves the rates.
            callbacks: of this fit.
            saved: a run to resume, and its file.
            minutes: see `callbacks.time_budget`.
            keep_trunk: whether and where to keep the run before its anneal.
            since: go on from there, and not from what is trained by now.
            asked: what else tells this plan from another one.
        """
        self.loop.require_rest()
        self._use_optimizer()
        decay = self._decay(wd)
        given = [*as_callbacks(self.callbacks), *as_callbacks(callbacks)]
        self._check_model()
        rate = arguments.rate_of(given, scheduler)
        budget = None if minutes is None else arguments.time_budget(minutes, n_epochs, rate)
        savers = [callback for callback in given if isinstance(callback, Checkpoint)]
        arguments.check_savers(savers)
        keeper = arguments.trunk_keeper(keep_trunk, scheduler, given, since)
        first = [cb for cb in (self.recorder, budget, scheduler) if cb is not None]
        everyone = [*first, *given, self.display]
        self.plan = plans.of_fit(self, method, epochs, n_epochs, lrs, decay, scheduler)
        kept = keep_trunk if isinstance(keep_trunk, bool) else str(keep_trunk)
        self.plan |= {"minutes": minutes, "keep_trunk": kept, "asked": list(asked)}
        if self.world.size > 1:
            self.say(f"{self.world.size} processes: {self._batch_of_all()}")
        begun, self._begun = self._begun, self._begun + 1
        unfinished = None if saved else self._unfinished(savers)
        if unfinished is not None and resuming.is_behind(self, unfinished[1], begun):
            self.say(f"{unfinished[0]}: this fit is finished there, and left out")
            shards.load(self.model, unfinished[1]["model"])
            self.trunk = keeper.found(self.plan) if keeper else None
            return
        saved = saved or unfinished
        if saved is not None:
            resuming.check(self, *saved, everyone)
            self.say(resuming.line(self, *saved))
            if keeper is not None:
                keeper.trunk = keeper.found(self.plan, saved[1]["run"]["place"]["step"])
        else:
            for saver in savers:
                text = self.world.first(partial(resuming.make_way, self, saver.path))
                if text is not None:
                    self.say(text)
        with optimizers.preserved(self.opt), self._trunk_of(keeper, resumed=saved is not None):
            optimizers.write(self.opt, "lr", lrs)
            if decay is not None:
                optimizers.write(self.opt, "wd", [decay])
            self.budget, self.scheduler = budget, rate
            try:
                self._run(
                    epochs,
                    n_epochs,
                    everyone,
                    # The trunk first: a checkpoint of the same step must not be without it.
                    savers=[*([] if keeper is None else [keeper]), *savers],
                    saved=saved[1] if saved else since and since.load(),
                    resumed=saved is not None,
                )
            finally:
                self.budget = None
                for saver in savers:
                    if saver.stopped is not None:
                        self.say(saver.stopped)
                    saver.stopped = None

        advice = hints.hint(self.recorder.plans) if self.hints and self.display.table else None
        if advice is not None:
            self.say(advice)
            self.hints = False

    def _batch_of_all(self) -> str:
        """Return in words how many samples a step has."""
        size, parts = plans.batch_size(self.data.train), self.world.size
        if size is None:
            return "each with batches of its own"
        accumulate = self.training_step.accumulate
        times = f" x {accumulate} batches" if accumulate > 1 else ""
        whole = size * accumulate
        return f"{size // parts} samples each{times}, so {whole} in a step; rates are as given"

    def _decay(self, wd: float | None) -> float | None:
        if wd is not None and not optimizers.has(self.opt, "wd"):
            raise ValueError(f"wd: {together.name(self.opt)} has no weight decay, leave it out")
        return None if wd is None else checks.real("wd", wd, low=0.0)

    @contextmanager
    def _trunk_of(self, keeper: TrunkKeeper | None, *, resumed: bool) -> Iterator[None]:
        """Have the trunk of the fit in the block; of one that came to nothing, the one before."""
        before = len(self.recorder.plans)
        try:
            yield
        finally:
            if resumed or len(self.recorder.plans) > before:
                self.trunk = None if keeper is None else keeper.trunk

    def _use_optimizer(self) -> None:
        """Take over an optimizer that was put in the place of the first one."""
        if self.opt is self.training_step.opt:
            return
        if not isinstance(self.opt, torch.optim.Optimizer):
            raise TypeError(
                f"learn.opt must be a torch optimizer, got {shorten(repr(self.opt), 99)}"
            )
        self.training_step.use(optimizers.build(self.model, self.opt))
        self._whole = False

    def _check_model(self) -> None:
        new = optimizers.missing(self.opt, self.model) if self._whole else []
        if new:
            raise ValueError(
                f"model: {new[0]!r} is trainable, but the optimizer does not have it; make a new "
                "Learner after changing the model"
            )

    def _unfinished(self, savers: list[Checkpoint]) -> tuple[Path, dict[str, Any]] | None:
        """Return the unfinished run that one of `savers` is to go on with, if there is one."""
        resumable = [saver for saver in savers if saver.resume]
        found = self.world.first(lambda: resuming.load(resumable[0].path)) if resumable else None
        return None if found is None or found[1]["run"]["finished"] else self._filled(found)

    def _filled(self, found: tuple[Path, dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
        """Return what the first process has read, with the shards, which each reads by itself."""
        return found[0], shard_files.filled(*found, self.model)

    def _saved_plan(
        self, method: str, asked: Sequence[Any], callbacks: Iterable[Callback | type[Callback]]
    ) -> dict[str, Any] | None:
        """Return the plan that a run to resume had for this call, which cannot be made again."""
        given = [*as_callbacks(self.callbacks), *as_callbacks(callbacks)]
        found = self._unfinished([cb for cb in given if isinstance(cb, Checkpoint)])
        if found is None:
            return None
        there = resuming.plans_of(found[1])
        plan = there[self._begun] if self._begun < len(there) else there[-1]
        if plan["method"] != method:
            return None
        if plan["asked"] != list(asked):
            raise ValueError(
                f"path: {str(found[0])!r} holds an unfinished run, and this one is another: it has "
                f"{method} with {plan['asked']}, here are {list(asked)}. Make them the same, or "
                "begin afresh with resume=False or another path"
            )
        return plan

    def say(self, text: str) -> None:
        """Show a line of text, unless nothing is to be shown."""
        if self.display.table:
            surface().line(text)

    def _run(
        self,
        epochs: range,
        n_epochs: int,
        callbacks: list[Callback],
        **options: Any,
    ) -> None:
        self._inferred = None
        self.loop.run(self, epochs, n_epochs, callbacks, **options)

    @contextmanager
    def rehearsal(self, values: Mapping[str, float] | None = None) -> Iterator[Rehearse]:
        """Yield a function that trains aside and leaves no trace.

        rehearse(steps, callbacks, then) trains for that many steps, neither validates nor runs the
        learner's callbacks, and returns what `then()` says of the trained model. Each call begins
        with the weights and the optimizer that the last one began with, and sees other batches;
        after the block the generators, the data and the counters are back, too.

        Args:
            values: of hyper-parameters of the optimizer, by the names "wd" and "mom".

        Raises:
            RuntimeError: a run is under way already.
        """
        self.loop.require_rest()
        self._use_optimizer()
        before, first = self._counters(), len(self.recorder.history)
        read = self.data.reader(aside=True)

        def rehearse(
            steps: int, callbacks: Sequence[Callback], then: Callable[[], Any] = lambda: None
        ) -> Any:
            nonlocal first
            epochs = range(first, first + steps)
            first = epochs.stop
            with (
                snapshot.training_preserved(self.modules, self.opt, self.training_step),
                self.training_step.guard.off(),
            ):
                # A rehearsal looks at every loss before the backward pass.
                self.training_step.recorded = None
                for name, value in (values or {}).items():
                    optimizers.write(self.opt, name, [value])
                # What ScheduleFree would do, which does not run here.
                optimizers.set_mode(self.opt, training=True)
                self._run(epochs, epochs.stop, [ShortRun(steps), *callbacks], aside=read)
                optimizers.set_mode(self.opt, training=False)
                return then()

        try:
            with snapshot.surroundings_preserved(self.modules, self.data.train):
                yield rehearse
        finally:
            vars(self).update(before)

    @contextmanager
    def aside(self) -> Iterator[Callable[..., None]]:
        """Yield a function that trains aside; after the block nothing in the learner has changed.

        run(epochs, n_epochs, callbacks, savers=(), saved=None, number=None) is `Loop.run` without
        validation and without the learner's callbacks; each call goes on where the last one ended.

        Raises:
            RuntimeError: a run is under way already.
        """
        self.loop.require_rest()
        self._use_optimizer()
        before = self._counters()

        def run(
            epochs: range, n_epochs: int, callbacks: Sequence[Callback], **options: Any
        ) -> None:
            optimizers.set_mode(self.opt, training=True)
            reader = self.data.reader(aside=True, first=options.get("number") or 0)
            self._run(epochs, n_epochs, list(callbacks), aside=reader, **options)
            optimizers.set_mode(self.opt, training=False)

        try:
            with (
                snapshot.surroundings_preserved(self.modules, self.data.train),
                snapshot.training_preserved(self.modules, self.opt, self.training_step),
            ):
                yield run
        finally:
            vars(self).update(before)

    def __repr__(self) -> str:
        """Return model, optimizer and what was trained."""
        size = sum(parameter.numel() for parameter in self.model.parameters())
        model, opt = type(self.model).__name__, together.name(self.opt)
        epochs = len(self.recorder.history)
        return f"Learner({model} of {size:,} parameters, {opt}, {epochs} epochs trained)"

    def fire(self, event: str) -> None:
        """Call the hooks of `event`."""
        hooks = self.loop.hooks[event]
        if hooks:
            fire(hooks, self)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer updates in an epoch: `accumulate` batches each, or what is left."""
        return math.ceil(self.data.steps_per_epoch / self.training_step.accumulate)

    @property
    def progress(self) -> float:
        """How far the planned run is: 0 at its first step, 1 at its last."""
        if self.budget is not None:
            return self.budget.progress
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
        try:
            return loss_func(pred, target)
        except Exception as error:
            shapes = f"a model output {batches.shape(pred)} and a target {batches.shape(target)}"
            note(error, f"raised by the loss, of {shapes}")
            raise

    # ---- evaluation: leaves no trace -----------------------------------------------------------

    def validate(self, dl: Iterable[Any] | None = None) -> dict[str, float]:
        """Return valid_loss and every metric over `dl` or the validation data; no callback runs.

        Of several processes all have to call it, and each gets the scores of the whole.
        """
        return self.evaluate(self._loader(dl))

    def evaluate(
        self,
        loader: Iterable[Any],
        watch: Callable[[Any, Any, Any], None] | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ) -> dict[str, float]:
        """Return the scores over `loader`; call watch(batch, pred, loss) for every batch.

        `metrics` are the learner's own where they are not given.
        """
        scores = Scores(self.metrics if metrics is None else metrics, self.world, self.device)

        def take(batch: Any, target: Any, pred: Any) -> None:
            batches.require_target(batch, target)
            with self.network.autocast():
                loss = check_scalar(self.compute_loss(pred, target))
            samples = batches.samples(*batches.split(batch))
            scores.add(batches.widened(pred), target, loss, samples)
            if watch is not None:
                watch(batch, pred, loss)

        signal: Cancel | None = None
        with self._told():
            try:
                self._evaluator(loader, take, aside=watch is None)
            except Cancel as raised:
                signal = raised
            self.loop.meet(self, "evaluation", signal)
            return scores.compute()

    def looking(self, loader: Any) -> AbstractContextManager[None]:
        """Return the context in which a look into `loader` leaves no trace."""
        return self._evaluator.kept(loader)

    def get_preds(
        self,
        dl: Iterable[Any] | None = None,
        *,
        with_input: bool = False,
        with_loss: bool = False,
        activate: bool = True,
    ) -> tuple[Any, ...]:
        """Return (predictions, targets) over `dl` or the validation data, in its order, on the CPU.

        Of several processes all have to call it, and each gets the whole.

        Args:
            dl: batches with targets, or of inputs alone; then the targets are None.
            with_input: return (inputs, predictions, targets).
            with_loss: return the loss of each sample, (N,), as the last item.
            activate: turn the model's output into probabilities where the loss works on logits:
                softmax over dimension 1 for cross entropy, sigmoid for binary cross entropy, exp
                for negative log likelihood.

        Raises:
            ValueError: `with_loss`, and the loss has none for each sample, or there is no target.
        """
        finish = self._activation() if checks.flag("activate", activate) else None
        each = self._sample_losses if checks.flag("with_loss", with_loss) else None
        inputs: list[Any] = []
        checks.flag("with_input", with_input)
        seen = (lambda batch, _: inputs.append(batch)) if with_input else None
        with self._told():
            collected = self._evaluator.collect(self._loader(dl), finish, each=each, seen=seen)
        *found, losses = collected
        first = [batches.concat(inputs)] if with_input else []
        return (*first, *found, *([losses] if with_loss else []))

    def predict(self, x: Any) -> Any:
        """Return predictions, as `get_preds` makes them, for one batch (N, ...) of inputs."""
        return finished(self._evaluator.predict(x), self._activation())

    # ---- files and display ---------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write model and optimizer to `path`, whole or not at all, and return the path.

        All processes must call it: a model that is sharded is gathered, and fits one that is not.
        """
        return checkpoint.save(path, checkpoint.states(self.model, self.opt))

    def load(self, path: str | os.PathLike[str], *, with_opt: bool = True) -> Self:
        """Take model and, `with_opt`, optimizer from a file of `save`; return the learner.

        Of a file of `export`, "model.safetensors", it takes the model alone.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged or of another model or optimizer; the learner is as it was.
        """
        opt = self.opt if checks.flag("with_opt", with_opt) else None
        saved = self.world.first(lambda: exporting.read(path))
        saved = shard_files.filled(files.as_path(path), saved, self.model)
        exporting.restore(path, saved, self.model, opt)
        self.trunk = None  # what is trained from here on is no more what the last fit was
        return self

    def resume(
        self,
        path: str | os.PathLike[str],
        *,
        callbacks: Iterable[Callback | type[Callback]] = (),
    ) -> None:
        """Finish the fit that was running when a `Checkpoint` wrote `path`, as it was planned.

        Training goes on at the very batch, and ends bit for bit as if it had never been stopped;
        checkpoints go on, too. Of `fine_tune` it finishes the part that was running.

        Args:
            path: a checkpoint; if it is damaged the one before it is taken, with a warning.
            callbacks: those that the fit was given, for no file can hold them; their states are
                restored.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, of another model, data or settings, or the run is finished;
                or its schedule is a function of your own: then call the same fit again with
                `Checkpoint(path, resume=True)`.
        """
        found = self.world.first(lambda: resuming.load(files.as_path(path)))
        if found is None:
            raise FileNotFoundError(f"path: there is no file {str(path)!r}")
        file, saved = found
        there = saved["run"]["plan"]
        if saved["run"]["finished"]:
            raise ValueError(
                f"path: the run in {str(file)!r} is finished; learn.load takes its model"
            )
        try:
            scheduler = plans.scheduler_of(there)
        except ValueError as error:
            raise ValueError(
                f"path: {str(file)!r}: {error}; call the same {there['method']} again, with "
                "Checkpoint(path, resume=True) among its callbacks"
            ) from None
        given = as_callbacks(callbacks)
        if not any(isinstance(cb, Checkpoint) for cb in [*given, *as_callbacks(self.callbacks)]):
            given.append(Checkpoint(path, **saved["run"]["rules"]))
        self._again(there, scheduler, given, self._filled(found))

    def _again(
        self,
        there: dict[str, Any],
        scheduler: Callback | None,
        callbacks: Iterable[Callback | type[Callback]],
        saved: tuple[Path, dict[str, Any]] | None = None,
    ) -> None:
        """Run the fit of a plan that a file has."""
        epochs = plans.span(there)
        given = plans.rates(there), there["wd"], scheduler, callbacks, saved
        options = {name: there[name] for name in ("minutes", "keep_trunk", "asked")}
        self._fit(there["method"], epochs, there["tot_epochs"], *given, **options)

    def no_bar(self) -> AbstractContextManager[None]:
        """Show no bar in the block; the table stays."""
        return self._display(ProgressBar(bar=False, table=self.display.table))

    def no_logging(self) -> AbstractContextManager[None]:
        """Show neither bar nor table nor the picture of `lr_find` in the block."""
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
        return Evaluator(self.network, self.modules, self.world)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tell other processes of an error that ends what they wait for; in a fit the loop does."""
        if self.world.alone or self.loop.running:
            yield
            return
        try:
            yield
            self.world.meet("evaluated")
        except Exception as error:
            cause = self.world.failed(error)
            self.world.begin()
            if cause is error:
                raise
            raise cause from error

    def _loader(self, dl: Iterable[Any] | None) -> Iterable[Any]:
        loader = self.data.valid if dl is None else dl
        if loader is None:
            raise ValueError("dl must be given: this learner has no validation data")
        check_loader("dl", loader)
        train = self.data.train
        if loader is self.data.valid or (loader is train and not repeats(train)):
            return loader  # this process's own already
        part: Iterable[Any] = part_of(loader, self.world, "dl")
        return part

    def _activation(self) -> Callable[[Tensor], Tensor] | None:
        loss_func = self._inferred if self.loss_func is None else self.loss_func
        if loss_func is None:
            with self.looking(self.data.train):
                batch = batches.to_device(next(iter(self.data.train)), self.device)
            loss_func = self._inferred = infer_loss(batches.split(batch)[1])
        return activation(loss_func)

    def _sample_losses(self, pred: Any, target: Any, n: int) -> Tensor:
        return of_samples(self.loss_func, pred, target, n)

    @property
    def modules(self) -> list[nn.Module]:
        """Everything that training can change beside the optimizer."""
        loss = [self.loss_func] if isinstance(self.loss_func, nn.Module) else []
        return [self.model, *loss]

    def _lrs(self, name: str, lr: LR | None) -> list[float]:
        """Return one learning rate for each layer group; None is the optimizer's own."""
        self._use_optimizer()
        if lr is None:
            rates = optimizers.current(self.opt, "lr")
            return [checks.positive(f"{name}: the optimizer's own", rate) for rate in rates]
        if isinstance(lr, LRFind) and lr != lr:
            raise ValueError(f"{name}: lr_find gave no learning rate: {lr.reason}")
        n = optimizers.n_groups(self.opt)
        return optimizers.spread(name, lr, n, optimizers.ratios(self.opt))

    def _counters(self) -> dict[str, Any]:
        names = (
            "scheduler",
            "epoch",
            "n_epochs",
            "stop_epoch",
            "step",
            "total_steps",
            "batch_index",
            "batches_per_epoch",
        )
        return {name: getattr(self, name) for name in (*names, "scores", "_inferred")}
