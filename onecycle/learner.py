"""The Learner: what a user calls."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onecycle import batch as batches
from onecycle import (
    checks,
    epochs_finder,
    exporting,
    extension,
    files,
    finder,
    freezing,
    interpretation,
    optimizers,
    plot,
    report,
    resuming,
    tta,
)
from onecycle import plan as plans
from onecycle.arguments import KeepTrunk, scheduler_of, span_of
from onecycle.callback import Callback, as_callbacks
from onecycle.callbacks.lr_finder import LRFinder
from onecycle.callbacks.scheduler import OneCycleScheduler, Plan
from onecycle.callbacks.torch_scheduler import TorchScheduler
from onecycle.data.augment import Augment
from onecycle.epochs_found import EpochFind
from onecycle.found import LRFind
from onecycle.interpretation import Interpretation
from onecycle.optimizers import LR
from onecycle.schedules import (
    Schedule,
    flat_cos,
    progress,
    sgdr,
    triangular,
    wsd,
)
from onecycle.summary import Summary, summarize
from onecycle.trainer import Trainer
from onecycle.trunk import Trunk, of_file
from onecycle.tuning import halving
from onecycle.tuning.search import Search


class Learner(Trainer):
    """Data, model and optimizer, and the loop that trains one with the others.

    Args:
        data: `DataLoaders`, or a pair (train, valid) of iterables of batches; valid may be None. A
            batch is (inputs, target), (input, input, target) or a mapping with the target under
            "target", "targets", "label", "labels" or "y".
        model: it is moved to `device`.
        loss_func: (pred, target) -> scalar tensor. None takes cross entropy for integer targets and
            the mean squared error for floats.
        opt_func: a torch optimizer class, a factory that takes parameter groups, or an optimizer;
            several as a list: optimizers, or one factory for each layer group of `splitter`; or a
            function whose first argument is called `model` and that returns one or a list, such as
            `muon_split`. A learning rate that is one number is for the last of them, and the others
            keep their ratios to it.
        metrics: functions of (pred, target) and others, one, a list or a dict by name; see
            `onecycle.metrics`.
        callbacks: for every fit; classes without arguments are made.
        wd: weight decay, not applied to biases and norm layers; None leaves the optimizer's own.
        splitter: the layer groups, first to last: a list of modules, or a function model -> modules
            or lists of parameters.
        device: None takes cuda, else mps, else cpu.
        precision: "fp32", "tf32", "bf16", "fp16", or "auto" for what the device is made for. In
            fp16 a batch whose gradients overflow is no step, so a schedule ends that much short.
        channels_last: keep images with their channels last in memory, which convolutions in half
            precision are fastest with.
        compile: True runs the model by torch.compile, a mapping gives its options; "step" records
            training steps as CUDA graphs.
        accumulate: batches for each optimizer step.
        clip: largest norm of the gradients; `float("inf")` only measures the norm.
        on_nan: a loss or gradient that is not finite reaches neither parameters nor optimizer:
            "raise" stops with FloatingPointError; "locate" also names the first module or parameter
            that is not finite, and waits for an accelerator at every step; "skip" warns and leaves
            the batch out, which then is no step; "ignore" trains on it.
        train_bn: batch norm in frozen groups: True trains its scale and shift and follows the
            batches, as fastai does; False keeps it as it is in evaluation, for small batches.
        ddp: options of torch's DistributedDataParallel, for several processes.
        shard: gives the model to `torch.distributed.fsdp.fully_shard`, its parts first, in the way
            that suits it: it is called with the model on its device, before the optimizer is made,
            and all processes begin with the weights of the first. One process by itself has nothing
            to share: there it is not called. A model that is sharded already needs none.
        live_plot: draw losses and learning rate while a fit runs, see `LivePlot`.

    Attributes that hooks read: `epoch` (of `n_epochs`, from 0; this fit stops before
    `stop_epoch`), `step` (updates done, of `total_steps`), `batch_index`, `progress`, `batch`,
    `pred`, `loss`, `scores` (of this epoch's validation), `model`, `opt`, `data`, `recorder`.

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

    # ---- training ------------------------------------------------------------------------------

    def fit_one_cycle(
        self,
        epochs: int | None = None,
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
        minutes: float | None = None,
        keep_trunk: KeepTrunk = True,
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
            minutes: train for so long instead of `epochs`, or at most so long, as in `fit`: the
                clock is the progress of the cycle, which is complete in any case.
            keep_trunk: keep the run as it was before the anneal for `extend`: in memory, if it is
                not larger than 1 GB; a path keeps it in a file, False nowhere.
        """
        if minutes is not None and (tot_epochs is not None or start_epoch is not None):
            raise ValueError("minutes: tot_epochs and start_epoch split a cycle that has epochs")
        span = span_of(epochs, minutes)
        epochs = len(span)
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
        span = range(first, first + epochs)
        options: dict[str, Any] = {"minutes": minutes, "keep_trunk": keep_trunk}
        self._fit("fit_one_cycle", span, total, lrs, wd, cycle, callbacks, **options)

    def fit_flat_cos(
        self,
        epochs: int | None = None,
        max_lr: LR | None = None,
        *,
        pct_start: float = 0.75,
        final_div: float = 1e5,
        wd: float | None = None,
        callbacks: Iterable[Callback | type[Callback]] = (),
        minutes: float | None = None,
        keep_trunk: KeepTrunk = True,
    ) -> None:
        """Train flat at `max_lr`, then down half a cosine: `fit` with `schedules.flat_cos`.

        Args:
            epochs: at least 1.
            max_lr: the flat part, as `lr` of `fit`.
            pct_start: share of the steps before the anneal.
            final_div: max_lr over the last value.
            wd: weight decay for this fit only.
            callbacks: for this fit only.
            minutes: as in `fit_one_cycle`.
            keep_trunk: as in `fit_one_cycle`.
        """
        schedule = flat_cos(pct_start=pct_start, final_div=final_div)
        options: dict[str, Any] = {"minutes": minutes, "keep_trunk": keep_trunk}
        self._fit_schedule("fit_flat_cos", epochs, max_lr, schedule, wd, callbacks, **options)

    def fit_wsd(
        self,
        epochs: int | None = None,
        max_lr: LR | None = None,
        *,
        warmup: float = 0.05,
        cooldown: float = 0.2,
        shape: str = "1-sqrt",
        wd: float | None = None,
        callbacks: Iterable[Callback | type[Callback]] = (),
        minutes: float | None = None,
        keep_trunk: KeepTrunk = True,
    ) -> None:
        """Train by warm-up, stable and cooldown to 0: `fit` with `schedules.wsd`.

        Args:
            epochs: at least 1.
            max_lr: the flat part, as `lr` of `fit`.
            warmup: share of the steps in the linear rise.
            cooldown: share of the steps in the decay.
            shape: of the cooldown: "1-sqrt", "linear" or "cos".
            wd: weight decay for this fit only.
            callbacks: for this fit only.
            minutes: as in `fit_one_cycle`.
            keep_trunk: as in `fit_one_cycle`.
        """
        schedule = wsd(warmup=warmup, cooldown=cooldown, shape=shape)
        options: dict[str, Any] = {"minutes": minutes, "keep_trunk": keep_trunk}
        self._fit_schedule("fit_wsd", epochs, max_lr, schedule, wd, callbacks, **options)

    def fit_sgdr(
        self,
        n_cycles: int,
        cycle_len: int,
        max_lr: LR | None = None,
        *,
        cycle_mult: int = 2,
        wd: float | None = None,
        callbacks: Iterable[Callback | type[Callback]] = (),
    ) -> None:
        """Train `n_cycles` cycles of cosine with warm restarts: `fit` with `schedules.sgdr`.

        Args:
            n_cycles: at least 1; 3 cycles from 1 epoch are 1 + 2 + 4 epochs.
            cycle_len: epochs in the first cycle.
            max_lr: the value at each restart, as `lr` of `fit`; a cycle ends at 0.
            cycle_mult: epochs of a cycle over those of the one before it.
            wd: weight decay for this fit only.
            callbacks: for this fit only.
        """
        n_cycles = checks.integer("n_cycles", n_cycles)
        cycle_len = checks.integer("cycle_len", cycle_len)
        cycle_mult = checks.integer("cycle_mult", cycle_mult)
        epochs = sum(cycle_len * cycle_mult**i for i in range(n_cycles))
        schedule = sgdr(cycle_len=cycle_len, cycle_mult=cycle_mult, epochs=epochs)
        self._fit_schedule("fit_sgdr", epochs, max_lr, schedule, wd, callbacks)

    def fit_clr(
        self,
        epochs: int,
        max_lr: LR | None = None,
        *,
        cycle_len: float | None = None,
        div_factor: float = 4.0,
        mode: str = "triangular",
        gamma: float = 0.9,
        wd: float | None = None,
        callbacks: Iterable[Callback | type[Callback]] = (),
    ) -> None:
        """Train by cyclical learning rates: `fit` with `schedules.triangular`.

        Args:
            epochs: best a multiple of `cycle_len`, so that training ends at a low rate.
            max_lr: the upper bound.
            cycle_len: epochs in a cycle, at most `epochs`; the paper recommends 4 to 20. None is
                4, or one cycle in a shorter run.
            div_factor: max_lr over the lower bound, above 1.
            mode: "triangular", "triangular2" or "exp_range".
            gamma: factor of the amplitude after one epoch, for "exp_range".
            wd: weight decay for this fit only.
            callbacks: for this fit only.
        """
        checks.integer("epochs", epochs)
        cycle_len = min(4, epochs) if cycle_len is None else cycle_len
        if checks.positive("cycle_len", cycle_len) > epochs:
            raise ValueError(
                f"cycle_len must be at most epochs={epochs!r}, or the first cycle would not end, "
                f"got {cycle_len!r}"
            )
        base = 1.0 / checks.real("div_factor", div_factor, low=1.0, open_low=True)
        options: dict[str, Any] = {"mode": mode, "gamma": gamma}
        schedule = triangular(base, cycle_len=cycle_len, epochs=epochs, **options)
        self._fit_schedule("fit_clr", epochs, max_lr, schedule, wd, callbacks)

    def extend(
        self,
        epochs: int,
        strategy: str = "auto",
        lr: LR | None = None,
        *,
        cooldown: float = extension.COOLDOWN,
        trunk: str | os.PathLike[str] | None = None,
        wd: float | None = None,
        callbacks: Iterable[Callback | type[Callback]] = (),
        keep_trunk: KeepTrunk = True,
    ) -> None:
        """Train `epochs` epochs more than the last fit, whose schedule is over.

        It says what it is going to do first, and goes on with one history and one optimizer.

        Args:
            epochs: beyond the end of the last fit.
            strategy: "trunk" goes back to where the last fit was before its anneal, trains flat at
                its rate, of a 1cycle the peak, and anneals again to the new end, by half a cosine;
                what was annealed before is trained anew. "decay" goes on from the trained model,
                from the peak of the last fit straight down to 0. "cycle" is one more cycle up to
                that peak, "constant" stays at a tenth of it. "auto" is "trunk" where the last fit
                has kept one from its second half, and the learner is as it was, else "decay". After
                `load` there is no trunk.
            lr: the rate instead, as `lr` of `fit`; of a number the groups keep their ratios.
            cooldown: share of the whole run, old and new, for the anneal of a trunk.
            trunk: file of the trunk to go back to, which `keep_trunk=` or a `Checkpoint` has
                written, in this process or another; the history there is not in it.
            wd: weight decay for this fit only.
            callbacks: for this fit only; those of the last fit are not remembered.
            keep_trunk: as in `fit_one_cycle`, to be extended again.

        Raises:
            ValueError: nothing was trained yet; "trunk" where there is none, or of another model,
                data or settings.

        Source: for the trunk Hagele et al. 2024 (arXiv 2405.18392); measured against the others in
        `tests/benchmarks/epochs.py`.
        """
        self._use_optimizer()
        given = as_callbacks(callbacks)
        n = optimizers.n_groups(self.opt)
        asked = lr if lr is None else optimizers.spread("lr", lr, n)
        file = None if trunk is None else files.as_path(trunk, "trunk")
        options: dict[str, Any] = {
            "asked": [epochs, strategy, asked, cooldown, wd, file and str(file)]
        }
        there = self._saved_plan("extend", options["asked"], given)
        if there is not None:
            self._again(there, plans.scheduler_of(there), given)
            return
        if file is not None:
            checks.choice("strategy", strategy, ("auto", "trunk"))
            kept = self._usable_trunk("trunk", of_file(file))
        elif self.recorder.plans:
            kept = self._usable_trunk(strategy, self.trunk)
        else:
            raise ValueError("nothing to extend: train by fit or fit_one_cycle first")
        last = self.recorder.plans[-1] if kept is None or file is None else kept.plan
        own = extension.rates(last, kept)
        if lr is None and len(own) != n:
            raise ValueError(
                f"lr must be given: the last fit had {len(own)} layer groups, and now there are {n}"
            )
        ratios = [rate / own[-1] for rate in own] if len(own) == n else None
        peaks = own if lr is None else optimizers.spread("lr", lr, n, ratios)
        low = extension.CONSTANT if lr is None else 1.0
        momentum = optimizers.has_momentum(self.opt)
        one = extension.planned(
            epochs, strategy, last, peaks, kept, cooldown, low, momentum=momentum
        )
        self.say(one.line)
        rest = one.epochs, one.n_epochs, one.lrs, wd, one.scheduler, given
        self._fit("extend", *rest, since=one.since, keep_trunk=keep_trunk, **options)

    def fine_tune(
        self,
        epochs: int,
        base_lr: float = 2e-3,
        freeze_epochs: int = 1,
        *,
        lr_mult: float = 100.0,
        pct_start: float = 0.3,
        div_factor: float = 5.0,
        wd: float | None = None,
        callbacks: Iterable[Callback | type[Callback]] = (),
    ) -> None:
        """Train the last layer group alone, then all of them, each by one cycle.

        First `freeze_epochs` frozen, at `slice(base_lr)` with the peak near the end; then `epochs`
        unfrozen, at half of `base_lr` for the last group and `lr_mult` times less for the first:
        little for the first layers, as suits a large pretrained model. `CancelTrain` ends the part
        it is raised in. An error leaves each parameter trainable or not as it was before.

        Args:
            epochs: of the second part, at least 1.
            base_lr: the peak of the first part.
            freeze_epochs: 0 leaves the first part out.
            lr_mult: last peak over first, in the second part.
            pct_start: of the second part.
            div_factor: of the second part.
            wd: weight decay for both.
            callbacks: for both.

        Raises:
            ValueError: the model has one layer group only.

        Source: fastai's `fine_tune`, with its constants.
        """
        checks.integer("epochs", epochs)
        checks.integer("freeze_epochs", freeze_epochs, low=0)
        if isinstance(base_lr, LRFind):
            self._lrs("base_lr", base_lr)
        base_lr = checks.positive("base_lr", base_lr)
        low = base_lr / 2 / checks.real("lr_mult", lr_mult, low=1.0)
        # What is wrong with the second part is told before the first is trained.
        OneCycleScheduler(base_lr, pct_start=pct_start, div_factor=div_factor)
        options: dict[str, Any] = {"wd": wd, "callbacks": as_callbacks(callbacks)}
        with freezing.kept_on_error(self.model):
            self.freeze()
            if freeze_epochs:
                self.fit_one_cycle(freeze_epochs, slice(base_lr), pct_start=0.99, **options)
            self.unfreeze()
            lrs = slice(low, base_lr / 2)
            options |= {"pct_start": pct_start, "div_factor": div_factor}
            self.fit_one_cycle(epochs, lrs, **options)

    # ---- layer groups --------------------------------------------------------------------------

    def freeze_to(self, n: int) -> None:
        """Train the layer groups from `n` on only; a negative `n` counts from the end.

        Nothing of the optimizer is lost: its state of parameters that are frozen, or trained again
        later, stays as it is. For batch norm see `train_bn` of the Learner.

        Raises:
            ValueError: there is no such group, or only one: see `splitter` of the Learner.
        """
        freezing.freeze_to(self.opt, self.model, n, self.train_bn)

    def freeze(self) -> None:
        """Train the last layer group only."""
        self.freeze_to(-1)

    def unfreeze(self) -> None:
        """Train all layer groups."""
        self.freeze_to(0)

    def summary(self) -> Summary:
        """Return a table of the layers: output shape, parameters, layer group, trained or not.

        One batch of the training data goes through the model and leaves no trace.
        """
        return summarize(self._evaluator, self.data.train, self.opt, self.loss_func)

    # ---- before training -----------------------------------------------------------------------

    def lr_find(
        self,
        start_lr: float = 1e-7,
        end_lr: float = 10.0,
        num_it: int = 100,
        stop_div: bool = True,
        *,
        method: str = "sweep",
        n_sweeps: int = 1,
        refine: bool = True,
        wd: float | Sequence[float] | None = None,
        moms: float | Sequence[float] | None = None,
        show_plot: bool = True,
    ) -> LRFind:
        """Look for a learning rate and return a suggestion; it leaves no other trace.

        Model, optimizer, generators, loader and history are restored bit for bit, also after an
        error or Ctrl-C, and no file is written. Callbacks do not run, so batches must fit the model
        as they come. An optimizer that sets the scale of its steps, as Prodigy does, is not swept:
        the answer is 1.0, its natural factor, with that reason. A notebook shows the picture, a
        terminal or a log a line with the answer, but not within `no_logging()`;
        `learn.recorder.plot()` draws the picture again.

        Args:
            start_lr: the first learning rate.
            end_lr: the last.
            num_it: steps, over as many epochs as it takes.
            stop_div: stop when the loss diverges.
            method: "sweep" is the usual test: raise the rate, watch the training loss. "race" then
                trains a few rates around the suggestion for a short 1cycle each, of `num_it` steps,
                judges them by the validation loss and goes on with the better half for twice as
                many. "linear" is the range test of the paper: from `start_lr` linearly to twice
                where the sweep diverged, by the accuracy on the validation data where that is a
                metric of the learner's, else by the loss. Both judge on about 2,000 samples.
            n_sweeps: sweeps from the same weights over other batches, of which the median counts;
                a race and a range test are held once.
            refine: sweep once more, slower, in up to 2 `num_it` steps, from a third of where the
                descent began to four times the divergence, and judge that.
            wd: weight decay; several are compared, and the answer is an `LROverlay`.
            moms: the same for momentum, or the first of the betas.
            show_plot: whether a notebook shows the picture.

        Raises:
            ValueError, TypeError: an argument out of its range; the loss was not finite at the
            first step; a method that needs validation data has none.
        """
        sweep = LRFinder(start_lr, end_lr, num_it, stop_div)
        checks.integer("n_sweeps", n_sweeps)
        checks.flag("refine", refine)
        checks.flag("show_plot", show_plot)
        values = {"wd": wd, "moms": moms}
        found = finder.search(self, sweep, method, n_sweeps, refine, values)
        self.recorder.lr_find = found
        if not plot.in_notebook():
            self.say(f"lr_find: {found!r}")
        elif show_plot and self.display.table:
            found.plot()
        return found

    def find(
        self,
        space: Mapping[str, Any],
        epochs: int,
        *,
        n: int = 9,
        eta: int = 3,
        min_epochs: int = 1,
        metric: str | None = None,
        mode: str | None = None,
        make: Callable[..., Learner] | None = None,
        seed: int = 0,
        backend: str | None = None,
        study: Any = None,
    ) -> Search:
        """Search for the best of several settings at once; it leaves no other trace.

        By successive halving: `n` configurations are trained for a few epochs, the best 1 / `eta`
        of them anew for `eta` times as many, and so on up to `epochs`. Every training is a complete
        1cycle of its length, because in the middle of a cycle no result says how its end will be.
        The cost is told before anything runs: the defaults take 26 epochs for `epochs=8`.

        Each training begins with this learner's weights and optimizer, in a copy without its
        callbacks, and sees the same data in the same order. This learner, the generators and the
        loader are bit for bit as they were, also after an error. A configuration that diverges is
        in the table and goes no further. Ctrl-C ends the search, and what was found so far is
        returned, with `interrupted` set; before the first result it is raised as ever.

        With Optuna installed it proposes the configurations, `n` of them, by its TPE sampler, and
        its pruner decides after each cycle whether that configuration has a longer one.

        Args:
            space: by name (low, high) of floats, searched by its logarithm where that is a decade
                or more; or a list of choices or a range. Names are max_lr (or lr), wd, moms,
                div_factor, pct_start and others of `fit_one_cycle`, and batch_size of data in
                memory. Without a rate that of the last `lr_find` is taken, or of a new one. Choices
                alone that make at most `n` combinations are all tried.
            epochs: of the longest cycles.
            n: configurations.
            eta: how many times fewer configurations each rung has, and longer cycles.
            min_epochs: the shortest cycles.
            metric: a column of the history; None is valid_loss.
            mode: "min" or "max": which `metric` is better, where it does not say so itself by an
                attribute `higher_is_better`.
            make: a factory that returns a new Learner, called with those names of the space that it
                takes; the others go to `fit_one_cycle`.
            seed: of the configurations, of the generators in each training alike, and added to that
                of data in memory.
            backend: "optuna" or "own"; None is Optuna where it is installed.
            study: an `optuna.Study` to use, with its own sampler, pruner and storage.

        Raises:
            ValueError, TypeError: an argument out of its range; a name or a value that nothing
            takes; no validation data; no configuration ended with a finite score.
            RuntimeError: this is one of several processes.
            ImportError: Optuna is asked for and not installed.

        Source: successive halving, Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943.

        >>> from onecycle.data import digits
        >>> from onecycle.models import simple_cnn
        >>> learn = Learner(digits(), simple_cnn((1, 8, 10)))
        >>> with learn.no_logging():
        ...     found = learn.find({"max_lr": (1e-4, 1e-1), "wd": [0, 0.1]}, epochs=1, n=3)
        >>> sorted(found.best), len(found.table)
        (['max_lr', 'wd'], 3)
        """
        self._require_alone("find")
        options = halving.Options(n, eta, min_epochs, metric, mode, make, seed, backend, study)
        return halving.search(self, space, epochs, options, self._found_lr)

    def epoch_find(
        self,
        max_epochs: int = 32,
        lr: LR | None = None,
        branches: str = "auto",
        metric: str | None = None,
        target: float | None = None,
        n_seeds: int = 1,
        *,
        method: str = "trunk",
        show_plot: bool = True,
    ) -> EpochFind:
        """Measure how many epochs are enough; it leaves no other trace.

        One run at a flat rate, half of the peak of a 1cycle, is read out after 1, 2, 4, ... epochs
        by a mean of its latest weights, and at some of these budgets by a short anneal from a state
        that was kept. That is at most 1.25 times the training of one run of `max_epochs`; a grid of
        complete runs would take twice as long as the longest. `finish()` of the result anneals to
        the chosen budget, so that nothing was trained in vain.

        Callbacks do not run. Model, optimizer, generators, loader and history are restored bit for
        bit, also after an error or Ctrl-C.

        Args:
            max_epochs: the largest budget; the others are a half of it, a quarter, ... down to 1.
            lr: peak of the 1cycle that is planned, as in `fit_one_cycle`. None is the last
                `lr_find`'s, or that of a new one.
            branches: budgets that are annealed: "auto" is the knee and those beside it, "all",
                "none".
            metric: name of the metric that decides; None is the loss.
            target: value of it that is enough.
            n_seeds: trunks, each with its own order of batches; they cost as many times as much.
            method: "trunk", or "double" for complete 1cycles of 1, 2, 4, ... epochs until one is no
                better than the one before.
            show_plot: whether a notebook shows the picture.

        Raises:
            ValueError, TypeError: an argument out of its range; no validation data; a metric that
                is not a mean over samples, or does not say whether higher is better.
            RuntimeError: this is one of several processes.

        Source: Hagele et al. 2024 (arXiv 2405.18392) for one flat run in the place of many;
        measured against complete 1cycles in `tests/benchmarks/epochs.py`.

        >>> from onecycle.data import digits
        >>> from onecycle.models import simple_cnn
        >>> learn = Learner(digits(), simple_cnn((1, 8, 10)))
        >>> with learn.no_logging():
        ...     found = learn.epoch_find(2, lr=0.1)
        ...     found.finish(2)
        >>> [row["epochs"] for row in found.table]
        [1, 2]
        """
        self._require_alone("epoch_find")
        budgets = epochs_finder.doublings(checks.integer("max_epochs", max_epochs))
        checks.flag("show_plot", show_plot)
        checks.choice("method", method, epochs_finder.METHODS)
        read = epochs_finder.reading(self, metric)
        options = epochs_finder.Options(
            budgets=budgets,
            branches=checks.choice("branches", branches, epochs_finder.BRANCHES),
            target=None if target is None else checks.real("target", target),
            n_seeds=checks.integer("n_seeds", n_seeds),
            peaks=self._lrs("lr", self._found_lr() if lr is None else lr),  # last: it may train
        )
        found = epochs_finder.search(self, options, read, method, self._finish)
        if not plot.in_notebook():
            self.say(f"epoch_find: {found!r}")
        elif show_plot and self.display.table:
            found.plot()
        return found

    def lr_at(
        self,
        epoch: int,
        batch: int = 0,
        *,
        epochs: int,
        max_lr: LR | None = None,
        schedule: Schedule | None = None,
        **cycle: Any,
    ) -> float:
        """Return the learning rate at which a planned run will train a batch.

        Args:
            epoch: from 0, as `learn.epoch` counts.
            batch: of this epoch, from 0.
            epochs: of the run.
            max_lr: as in `fit_one_cycle`; what is returned is the rate of the last layer group.
            schedule: as in `fit`; None is one cycle.
            cycle: arguments of `OneCycleScheduler`, such as pct_start.

        >>> from onecycle.data import digits
        >>> from onecycle.models import simple_cnn
        >>> learn = Learner(digits(), simple_cnn((1, 16, 10)))
        >>> learn.lr_at(epoch=3, epochs=10, max_lr=0.1)
        0.1
        """
        plan, steps = self._planned(epochs, max_lr, schedule, cycle), self._steps(epochs)
        epoch = checks.integer("epoch", epoch, low=0, high=epochs - 1)
        batch = checks.integer("batch", batch, low=0, high=self.data.steps_per_epoch - 1)
        step = epoch * self.steps_per_epoch + batch // self.training_step.accumulate
        return plan["lr"][-1](progress(step, steps))

    def plot_schedule(
        self,
        epochs: int,
        max_lr: LR | None = None,
        schedule: Schedule | Mapping[str, Schedule | None] | None = None,
        *,
        ax: Any = None,
        **cycle: Any,
    ) -> Any:
        """Draw learning rate and momentum of a run before it is trained, with a table of epochs.

        Of several layer groups it is the last that is drawn; epochs count from 0, and the rate in
        the table is that of their first batch.

        Args:
            epochs: of the run.
            max_lr: as in `fit_one_cycle`.
            schedule: as in `fit`; None is one cycle; a dict overlays several by name, such as
                `{"1 x 20": None, "20 x 1": repeat(one_cycle(), 20)}`.
            ax: axes for the learning rate, which is then all that is drawn.
            cycle: arguments of `OneCycleScheduler`, such as pct_start.

        Returns:
            The axes: of the rate, of momentum where the optimizer has one, and of the table.
        """
        given = schedule if isinstance(schedule, Mapping) else {"": schedule}
        if not given:
            raise ValueError("schedule must hold at least one schedule, got {}")
        steps = self._steps(epochs)
        grid = [progress(t, steps) for t in range(steps)]
        curves = {}
        for name, one in given.items():
            # Of several the arguments about the cycle are for those that are one.
            options = cycle if one is None or None not in given.values() else {}
            plan = self._planned(epochs, max_lr, one, options)
            still = (
                optimizers.read(self.opt, "mom") if optimizers.has_momentum(self.opt) else math.nan
            )
            moms = [plan["mom"][-1](p) for p in grid] if "mom" in plan else [still] * steps
            curves[name] = [plan["lr"][-1](p) for p in grid], moms
        return plot.schedules(curves, self.steps_per_epoch, ax)

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Write one self-contained HTML page about the training so far, and return its path.

        It has the table, pictures of losses, metrics, schedule and LR finder, the configuration and
        the versions; it loads nothing from elsewhere and runs no script.

        Raises:
            ValueError: nothing was trained yet.
        """
        return report.write(self, path)

    # ---- after training ------------------------------------------------------------------------

    def interpret(
        self,
        dl: Iterable[Any] | None = None,
        *,
        classes: Iterable[Any] | None = None,
        keep: int = interpretation.KEEP,
    ) -> Interpretation:
        """Return which samples of `dl` or the validation data are wrong, and which classes.

        Args:
            dl: batches with targets.
            classes: a name for each class; None takes `classes` of a loader's data set, if it has
                as many, else numbers.
            keep: samples of the highest losses whose inputs are kept to be shown.

        Raises:
            ValueError: the loss has none for each sample; see `get_preds`.

        >>> from onecycle.data import digits
        >>> from onecycle.models import simple_cnn
        >>> learn = Learner(digits(), simple_cnn((1, 8, 10)))
        >>> learn.interpret().confusion_matrix().shape
        (10, 10)
        """
        given = self._evaluator, self._loader(dl), self._activation(), self._sample_losses
        return interpretation.read(*given, classes, keep)

    def tta(
        self,
        dl: Iterable[Any] | None = None,
        n: int = 4,
        augment: Augment | None = None,
        *,
        beta: float | None = 0.25,
        seed: int | None = None,
    ) -> tuple[Any, Any]:
        """Return (predictions, targets) as `get_preds`, of several augmented views of each sample.

        Probabilities are averaged, not the model's output: what `get_preds` makes of `n` views has
        the weight 1 - beta, what it makes of the inputs as they are the weight beta. The data are
        read once.

        Args:
            dl: batches; None is the validation data.
            n: views.
            augment: as in `onecycle.data.InMemoryLoader`: functions of a batch of inputs, of
                several the first. None is that of training data in memory.
            beta: weight of the plain prediction; None gives each of the n + 1 the same.
            seed: of the views, with the number of the batch; None is that of training data in
                memory, or 0. An augmentation without `generator` draws what it draws.

        Raises:
            ValueError: no augmentation is known, or an argument is out of its range.

        Source: fastai's `tta`, with its constants.

        >>> from onecycle.data import digits
        >>> from onecycle.data.augment import random_crop
        >>> from onecycle.models import simple_cnn
        >>> learn = Learner(digits(), simple_cnn((1, 8, 10)))
        >>> learn.tta(n=2, augment=random_crop(1))[0].shape
        torch.Size([359, 10])
        """
        n, train = checks.integer("n", n), self.data.train
        views = (
            tta.augmentation(augment, train),
            n,
            tta.weight_of(beta, n),
            tta.seed_of(seed, train),
        )
        run = tta.mean_of(self.network, self._activation(), *views)
        preds, targets, _ = self._evaluator.collect(self._loader(dl), None, run=run)
        return preds, targets

    def export(self, path: str | os.PathLike[str], inputs: Any = None) -> Path:
        """Write the bare model, without optimizer, for other programs to use; return the path.

        The suffix is the format: ".safetensors" are the weights, which `load` and `load_model`
        take; ".pt2" is a program of torch.export, which `load_model` runs, and ".onnx" one for
        other runtimes. Programs are of the model in evaluation mode, in full precision, on the CPU,
        and take batches of any size. No data are in the file, which is written whole or not at all.
        ".safetensors" and ".onnx" need `pip install "onecycle[export]"`.

        Args:
            path: the file.
            inputs: one batch of inputs, whose shapes a program is made for; None takes one from
                the validation or the training data.

        Raises:
            ImportError: a package is missing.
            ValueError: another suffix, or torch cannot follow the model.
        """
        loader = self.data.train if self.data.valid is None else self.data.valid
        return exporting.write(path, self.model, lambda: self._some_inputs(loader, inputs))

    # ---- small parts ---------------------------------------------------------------------------

    def _some_inputs(self, loader: Iterable[Any], inputs: Any) -> Any:
        """Return `inputs`, or those of the first batch of `loader`."""
        if inputs is not None:
            return inputs
        with self.looking(loader):
            return batches.split(next(iter(loader)))[0]

    def _require_alone(self, method: str) -> None:
        if self.world.size > 1:
            raise RuntimeError(
                f"{method} trains in one process, and this is one of {self.world.size}: run it in "
                "one process, and give what it finds to the fit of all"
            )

    def _finish(
        self, epochs: range, n_epochs: int, lrs: list[float], scheduler: Callback, since: Trunk
    ) -> None:
        """Anneal a trunk of `epoch_find`, as a fit like any other."""
        other = self._otherwise(since)
        if other is not None:
            raise ValueError(f"finish goes on as the run of epoch_find was, but {other}")
        self.say(
            f"finish: back to epoch {since.epoch:.4g} of the flat run, in the place of the model "
            f"that is here, and from {lrs[-1]:.2e} down to 0 at {n_epochs}"
        )
        self._fit("epoch_find", epochs, n_epochs, lrs, None, scheduler, (), since=since)

    def _found_lr(self) -> LR:
        """Return what the last `lr_find` has found or, where that is nothing, a new one."""
        found = self.recorder.lr_find
        return self.lr_find(show_plot=False) if found is None or found != found else found

    def _otherwise(self, trunk: Trunk) -> str | None:
        """Return in what this learner differs from the one that a trunk is of, None for nothing."""
        kept = trunk.read()
        other = resuming.difference(self, kept, plans.of_fit(self, "", range(1), 1, [], None, None))
        trained = [own["trained"] for own in kept["run"]["modules"]]
        here = [[p.requires_grad for p in module.parameters()] for module in self.modules]
        if other is None and trained != here:
            return "model: other parameters are trained now"
        return other

    def _usable_trunk(self, strategy: str, trunk: Trunk | None) -> Trunk | None:
        """Return `trunk` if `strategy` is to go back to it, None if not."""
        if trunk is None or strategy not in ("auto", "trunk"):
            return None
        other = self._otherwise(trunk)
        if strategy == "auto":
            return trunk if other is None and trunk.progress >= 0.5 else None
        if other is not None:
            raise ValueError(f"strategy='trunk' goes on as the run was, but {other}")
        return trunk

    def _steps(self, epochs: int) -> int:
        return checks.integer("epochs", epochs) * self.steps_per_epoch

    def _fit_schedule(
        self,
        method: str,
        epochs: int | None,
        max_lr: LR | None,
        schedule: Schedule,
        wd: float | None,
        callbacks: Iterable[Callback | type[Callback]],
        minutes: float | None = None,
        keep_trunk: KeepTrunk = False,
    ) -> None:
        """Do what `fit` does, for those who call its rate `max_lr`."""
        span = span_of(epochs, minutes)
        lrs = self._lrs("max_lr", max_lr)
        given = lrs, wd, scheduler_of(schedule, lrs), callbacks
        self._fit(method, span, span.stop, *given, minutes=minutes, keep_trunk=keep_trunk)

    def _planned(
        self, epochs: int, max_lr: LR | None, schedule: Schedule | None, cycle: dict[str, Any]
    ) -> Plan:
        """Return what a fit of one cycle, or with `schedule`, would do."""
        lrs = self._lrs("max_lr", max_lr)
        unknown = cycle.keys() - set(plans.CYCLE)
        if unknown:
            raise TypeError(
                f"{min(unknown)} says nothing about the cycle: {', '.join(plans.CYCLE)} do"
            )
        if schedule is None:
            return OneCycleScheduler(lrs, **cycle).plan(self.opt, self._steps(epochs))
        if cycle:
            raise TypeError(f"{next(iter(cycle))} belongs to one cycle, leave it out with schedule")
        scheduler = scheduler_of(schedule, lrs)
        if isinstance(scheduler, TorchScheduler):
            raise TypeError("schedule: a TorchScheduler is known step by step only, when it runs")
        return scheduler.plan(self.opt, self._steps(epochs))
