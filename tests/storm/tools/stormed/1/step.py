"""A step of a storm: prints lines, leaves artifacts, and writes to the record first whatever it then prints.

A full disk is waited for, byte by byte: what did not fit is written when there is room again, so that log and record stay equal.

Rules for editing: standard library only, for the host's own Python; the record lies where no disk fills up.
"""

import errno
import hashlib
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def patiently(work: Callable[[], T]) -> T:
    """Do it, once there is room for it."""
    while True:
        try:
            return work()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        time.sleep(0.1)


def say(copy: int, data: bytes) -> None:
    """Put bytes into the record, then into the log."""
    os.write(copy, data)
    done = 0
    while done < len(data):
        done += patiently(partial(os.write, 1, data[done:]))


def keep(name: str, size: int) -> str:
    """Leave an artifact of random bytes, whole or not at all; returns its line for the record."""
    final, half = Path(os.environ["RT_OUTPUT"]) / name, Path(os.environ["RT_WORK"]) / "half"
    data = os.urandom(size)
    patiently(lambda: final.parent.mkdir(parents=True, exist_ok=True))
    patiently(lambda: half.write_bytes(data))
    patiently(lambda: half.replace(final))
    return f"{hashlib.sha256(data).hexdigest()} {name}\n"


def main(record: str, lines: int, delay_s: float, kb: int, flood_kb: int) -> None:
    """Be a training, of some sort."""
    label, key = os.environ["RT_JOB"], os.environ["RT_STEP"]
    copy = os.open(f"{record}/{label}.{key}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sums = os.open(f"{record}/{label}.sums", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    if kb:
        os.write(sums, keep("part/early.bin", 5000).encode())
    if flood_kb:
        say(copy, os.urandom(flood_kb * 1024))
    for line in range(1, lines + 1):
        say(copy, f"line {line} of {label} {key} at {time.time():.3f}\n".encode())
        time.sleep(delay_s)
    if kb:
        os.write(sums, keep("final/result.bin", kb * 1024).encode())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
