"""The other frameworks on the job of `contenders.py`, each as its own documents have it.

Nothing is written to disk: fastai does not by default, and Lightning is told not to. What must be
switched off for that, or for a bar that is not wanted, is in the calls below.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from contenders import Job, validated
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR


class Loader:
    """An iterable that is no list: Lightning takes a list for several loaders."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def fastai(job: Job) -> list[float]:
    """`Learner.fit_one_cycle`; the recorder's losses are smoothed, and it reads each at once."""
    from fastai.callback import progress, schedule  # noqa: F401 - they add to the Learner
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.metrics import accuracy
    from fastai.torch_core import default_device

    default_device(False)
    data = DataLoaders(job.batches, job.valid or [])
    metrics = None if job.valid is None else accuracy
    learn = Learner(data, job.model(), nn.CrossEntropyLoss(), wd=job.wd, metrics=metrics)
    with ExitStack() as stack:
        if not job.progress:
            stack.enter_context(learn.no_bar())
            stack.enter_context(learn.no_logging())
        learn.fit_one_cycle(job.epochs, job.lr, div=25.0, div_final=25e4, pct_start=0.3)
    return [float(loss) for loss in learn.recorder.losses]


def lightning(job: Job, **options: Any) -> list[float]:
    """A `LightningModule` that logs its loss; a callback keeps the loss of every step."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = job.model()

        def training_step(self, batch: Any, _: int) -> Tensor:
            x, y = batch
            loss = cross_entropy(self.model(x), y)
            self.log("train_loss", loss, prog_bar=True)
            return loss

        def validation_step(self, batch: Any, _: int) -> None:
            x, y = batch
            pred = self.model(x)
            self.log("valid_loss", cross_entropy(pred, y), prog_bar=True)
            self.log("accuracy", (pred.argmax(1) == y).float().mean(), prog_bar=True)

        def configure_optimizers(self) -> Any:
            opt = AdamW(self.parameters(), lr=job.lr, weight_decay=job.wd)
            return {
                "optimizer": opt,
                "lr_scheduler": {"scheduler": job.schedule(opt), "interval": "step"},
            }

    class Losses(lightning.Callback):
        def __init__(self) -> None:
            self.losses: list[float] = []

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            self.losses.append(outputs["loss"].item())

    # It warns of too few workers, which a list of batches cannot have.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    losses = Losses()
    options = options or {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": job.progress,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=job.epochs, accelerator="cpu", devices=1, callbacks=[losses], **options
        )
        trainer.fit(Module(), Loader(job.batches), None if job.valid is None else Loader(job.valid))
    return losses.losses


def lightning_stripped(job: Job) -> list[float]:
    """The same in its "barebones" mode, which logs nothing and knows no bar."""
    return lightning(job, barebones=True)


def ignite(job: Job) -> list[float]:
    """`create_supervised_trainer`, handlers for the schedule and for the losses."""
    from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
    from ignite.handlers import ProgressBar
    from ignite.metrics import Accuracy, Loss

    model, losses = job.model(), []
    opt = AdamW(model.parameters(), lr=job.lr, weight_decay=job.wd)
    schedule = job.schedule(opt)
    trainer = create_supervised_trainer(model, opt, cross_entropy, device="cpu")

    @trainer.on(Events.ITERATION_COMPLETED)
    def after(engine: Any) -> None:
        schedule.step()
        losses.append(engine.state.output)

    if job.valid is not None:
        metrics = {"loss": Loss(cross_entropy), "accuracy": Accuracy()}
        evaluator = create_supervised_evaluator(model, metrics, device="cpu")
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(job.valid))
    if job.progress:
        ProgressBar().attach(trainer, output_transform=lambda loss: {"loss": loss})
    trainer.run(job.batches, max_epochs=job.epochs)
    return losses


def skorch(job: Job) -> list[float]:
    """`NeuralNetClassifier`, which keeps the loss of every batch in its history."""
    from skorch import NeuralNetClassifier
    from skorch.callbacks import LRScheduler, ProgressBar
    from skorch.helper import predefined_split
    from torch.utils.data import TensorDataset

    model = job.model()
    callbacks = [LRScheduler(policy=OneCycleLR, step_every="batch", **job.cycle)]
    if job.progress:
        callbacks.append(ProgressBar())
    # Batches come from the list; the data sets are there for form's sake, as skorch wants some.
    x, y = next(iter(job.batches))
    valid = None if job.valid is None else predefined_split(_joined(job.valid))
    net = NeuralNetClassifier(
        model,
        criterion=nn.CrossEntropyLoss,
        optimizer=AdamW,
        optimizer__weight_decay=job.wd,
        lr=job.lr,
        max_epochs=job.epochs,
        iterator_train=lambda dataset, **_: job.batches,
        iterator_valid=lambda dataset, **_: job.valid,
        train_split=valid,
        classes=range(10),
        callbacks=callbacks,
        verbose=int(job.progress),
        device="cpu",
    )
    net.fit(TensorDataset(x, y), None)
    return [
        row["train_loss"]
        for epoch in net.history
        for row in epoch["batches"]
        if "train_loss" in row
    ]


def accelerate(job: Job) -> list[float]:
    """The plain loop with model, optimizer and schedule prepared by an `Accelerator`."""
    from accelerate import Accelerator
    from accelerate.utils import tqdm

    accelerator = Accelerator(cpu=True)
    model, losses = job.model(), []
    opt = AdamW(model.parameters(), lr=job.lr, weight_decay=job.wd)
    model, opt, schedule = accelerator.prepare(model, opt, job.schedule(opt))
    for _ in range(job.epochs):
        model.train()
        for x, y in tqdm(job.batches) if job.progress else job.batches:
            opt.zero_grad()
            loss = cross_entropy(model(x), y)
            accelerator.backward(loss)
            opt.step()
            schedule.step()
            losses.append(loss.item())
        if job.valid is not None:
            validated(model, job.valid)
    return losses


def _joined(batches: Any) -> Any:
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return torch.utils.data.TensorDataset(x, y)


PEERS: dict[str, Callable[[Job], list[float]]] = {
    "fastai": fastai,
    "Lightning": lightning,
    "Lightning (stripped)": lightning_stripped,
    "ignite": ignite,
    "skorch": skorch,
    "accelerate": accelerate,
}
NEEDS = {"Lightning": "lightning", "Lightning (stripped)": "lightning"} | {
    name: name for name in ("fastai", "ignite", "skorch", "accelerate")
}
