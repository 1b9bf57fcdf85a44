"""A trace of a few steps, by torch's profiler."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from onecycle import checks, files
from onecycle.callback import Callback
from onecycle.distributed import rank

if TYPE_CHECKING:
    from onecycle.learner import Learner


class Profiler(Callback):
    """Write a trace of some steps by `torch.profiler`, for chrome://tracing or ui.perfetto.dev.

    Steps before and after the window are not slowed down. A fit that ends within the window leaves
    a trace of what there was; one that does not reach it leaves none, and a warning. Each fit
    writes anew. In a distributed run rank 0 writes.

    Args:
        path: the file, such as "trace.json", or "trace.json.gz" which is compressed.
        skip: optimizer steps of the fit before the window; the last of them warms the profiler up.
        steps: optimizer steps in the window.
        **options: of `torch.profiler.profile`, such as record_shapes, profile_memory, with_stack.

    Raises:
        ValueError, TypeError: an argument out of its range.
        OSError: the file cannot be written.

    >>> trace = Profiler("runs/trace.json.gz", skip=20, steps=3, record_shapes=True)
    """

    def __init__(
        self, path: files.PathLike = "trace.json", skip: int = 10, steps: int = 5, **options: Any
    ) -> None:
        self.path = files.as_path(path)
        self.skip = checks.integer("skip", skip)
        self.steps = checks.integer("steps", steps)
        self.options = options
        self._done: int | None = None  # steps of this fit; None when there is nothing left to do
        self._profile: Any = None

    def on_train_begin(self, learn: Learner) -> None:  # noqa: ARG002 - the contract of a hook
        """Begin to count."""
        if rank() == 0:
            files.require_writable(self.path)
            self._done = 0
            self._look()

    def on_step_end(self, learn: Learner) -> None:  # noqa: ARG002
        """Begin and end the window."""
        if self._done is not None:
            self._done += 1
            self._look()

    def on_train_end(self, learn: Learner) -> None:
        """Write what there is of a window that was not reached, or not left."""
        done, self._done = self._done, None
        if done is not None and done > self.skip:
            self._write()
        elif done is not None:
            self._stop()
            if not learn.loop.failed:
                text = f"no trace: the fit had {done} steps, and skip={self.skip}"
                warnings.warn(text, stacklevel=2)

    def _look(self) -> None:
        if self._profile is not None:
            self._profile.step()
        elif self._done == self.skip - 1:
            self._start()
        if self._done == self.skip + self.steps:
            self._done = None
            self._write()

    def _start(self) -> None:
        from torch import profiler

        plan = profiler.schedule(wait=0, warmup=1, active=self.steps + 1)
        self._profile = profiler.profile(schedule=plan, **self.options)
        self._profile.start()

    def _stop(self) -> Any:
        profile, self._profile = self._profile, None
        if profile is not None:
            profile.stop()
        return profile

    def _write(self) -> None:
        self._stop().export_chrome_trace(str(self.path))
