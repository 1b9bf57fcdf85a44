"""The signals that stop a part of the loop."""


class Cancel(Exception):  # noqa: N818 - a signal, not an error
    """Base of the signals that stop a part of the loop."""

    width = 0


class CancelBatch(Cancel):
    """Skip the rest of this batch.

    Raised before its backward pass, the batch counts for nothing. Raised after it and before the
    step, all gradients gathered since the last step are dropped, those of accumulated batches too.
    """

    width = 1


class CancelEpoch(Cancel):
    """Skip the rest of this epoch, its validation included."""

    width = 2


class CancelTrain(Cancel):
    """Stop training. The epoch's and the training's end events still fire."""

    width = 3


SIGNALS = {signal.width: signal for signal in (CancelBatch, CancelEpoch, CancelTrain)}
