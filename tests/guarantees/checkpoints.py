"""Cancelling at every checkpoint: a Trio instrument counts the steps of a task and its children, and stops at one."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio


@dataclass(eq=False)
class Steps(trio.abc.Instrument):
    """Watches the tasks of one block. After their step number ``stop_at``, ``stop`` is called, once.

    A task that has made a step waits at a checkpoint: so what ``stop`` cancels is cancelled exactly there,
    or, where the checkpoint is shielded, at the next one that is not.
    """

    stop_at: int
    stop: Callable[[], None]
    taken: int = 0
    stopped: bool = False
    _tasks: set[trio.lowlevel.Task] = field(default_factory=set)

    @property
    def left(self) -> int:
        """Tasks that have not ended."""
        return len(self._tasks)

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        if task.parent_nursery is not None and task.parent_nursery.parent_task in self._tasks:
            self._tasks.add(task)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self._tasks.discard(task)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task not in self._tasks:
            return
        self.taken += 1
        if self.taken == self.stop_at:
            self.stopped = True
            self.stop()

    async def run(self, block: Callable[[], Awaitable[None]]) -> None:
        """Run ``block`` in a task of its own under watch, until it has ended with all that it started."""

        async def watched() -> None:
            self._tasks.add(trio.lowlevel.current_task())
            await block()

        trio.lowlevel.add_instrument(self)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watched)
        finally:
            trio.lowlevel.remove_instrument(self)
