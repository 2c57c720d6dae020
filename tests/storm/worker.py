"""`python -m tests.storm.worker FILE`: a worker on a machine whose clock is off by the seconds that FILE says, at any moment.

libfaketime cannot do it: under it Python's own `sleep` fails. The product reads the machine's time in one way only, `time.time`.

Rules for editing: nothing of the product is imported before the clock is replaced.
"""

import runpy
import sys
import time
from pathlib import Path

_REREAD_S = 0.1


class _Clock:
    """The machine's clock, as somebody has set it."""

    def __init__(self, file: Path) -> None:
        self._file, self._right = file, time.time
        self._off, self._read_at = 0.0, float("-inf")

    def __call__(self) -> float:
        """Return what the clock shows."""
        if time.monotonic() - self._read_at > _REREAD_S:
            self._off, self._read_at = float(self._file.read_text()), time.monotonic()
        return self._right() + self._off


if __name__ == "__main__":
    time.time = _Clock(Path(sys.argv[1]))
    sys.argv[1:] = ["worker"]
    runpy.run_module("remote_trainer", run_name="__main__", alter_sys=True)
