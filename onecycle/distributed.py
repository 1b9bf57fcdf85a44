"""The processes that train one model together, by torch.distributed."""

from torch import distributed


def rank() -> int:
    """Return the number of this process, 0 where it is the only one.

    >>> rank()
    0
    """
    return (
        distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
    )
