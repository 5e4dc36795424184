"""``python -m tests.bench.client``: reads jobs from stdin and writes what it saw, a line of JSON each."""

import json
import sys
from collections.abc import Callable
from typing import Any

from tests.bench.load import leave, measure
from tests.bench.steady import steady
from tests.bench.streams import Streams


def main() -> None:
    streams = Streams()
    tasks: dict[str, Callable[..., dict[str, Any]]] = {
        "measure": measure,
        "leave": leave,
        "steady": steady,
        "open": streams.open,
        "watch": streams.watch,
        "close": streams.close,
    }
    for line in sys.stdin:
        job = json.loads(line)
        task = tasks[job.pop("task")]
        if "request" in job:
            job["request"] = job["request"].encode()
        sys.stdout.write(f"{json.dumps(task(**job))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
