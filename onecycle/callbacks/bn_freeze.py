"""BnFreeze: batch norm that is as in evaluation while the rest trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onecycle import checks, freezing
from onecycle.callback import Callback

if TYPE_CHECKING:
    from onecycle.learner import Learner

LAYERS = ("frozen", "all")


class BnFreeze(Callback):
    """Keep batch norm as it is in evaluation: by its running statistics, which stay as they are.

    For small batches, whose own statistics are poor, when a trained model is trained on.
    `Learner(train_bn=False)` does so for frozen layer groups in every fit; this does it for one
    fit, for layers that were frozen in other ways, or for all. Afterwards modes are as they were.

    Args:
        layers: "frozen" are those that train neither scale nor shift, and where there are none
            those in a part of the model that trains nothing; "all" trains scale and shift as
            before.

    Raises:
        ValueError: other `layers`.

    >>> from onecycle import BnFreeze, Learner, data, models
    >>> learn = Learner(data.digits(), models.resnet9(1, width=2))
    >>> with learn.no_logging():
    ...     learn.fit(1, callbacks=[BnFreeze("all")])
    >>> learn.model[0][1].num_batches_tracked
    tensor(0)
    """

    def __init__(self, layers: str = "frozen") -> None:
        self.layers = checks.choice("layers", layers, LAYERS)

    def on_epoch_begin(self, learn: Learner) -> None:
        """Put batch norm in evaluation mode, now that the model is in training mode."""
        freezing.hold_norms(learn.model, trained=self.layers == "all")
