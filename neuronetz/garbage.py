"""Collections of garbage, which stop the process and everything that it serves for as long as they take.

What a start makes stays for good: modules, classes, pools. To look at it again and again while it is being made
delays the start by a tenth; a full collection that goes over it later takes tens of milliseconds, in which no
token of any stream is passed on. Over what requests leave, it takes next to none.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def put_off() -> Iterator[None]:
    """Within the block, collect nothing until ``leave_out_the_start`` or the end of the block."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def leave_out_the_start() -> None:
    """The start is over: collect again from now on, and never look at what there is now."""
    gc.collect()
    gc.freeze()
    gc.enable()
