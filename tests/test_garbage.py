"""Once the start is over, collections look at what came since, and at nothing else."""

import subprocess
import sys

_STARTS = """
import gc
from neuronetz import garbage
with garbage.put_off():
    assert not gc.isenabled()
assert gc.isenabled()
with garbage.put_off():
    made = [[] for _ in range(1000)]
    garbage.leave_out_the_start()
    assert gc.isenabled()
looked_at = {id(thing) for thing in gc.get_objects()}
assert not looked_at & {id(thing) for thing in made}
since = [[]]
assert id(since) in {id(thing) for thing in gc.get_objects()}
"""


def test_what_the_start_has_made_is_left_out() -> None:
    # In a process of its own: what is left out stays left out.
    subprocess.run([sys.executable, "-c", _STARTS], check=True)
