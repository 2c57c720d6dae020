"""Runs benchmarks one after the other, each in a process of its own, and prints their tables.

    python -m bench [NAME ...]      # without names all of them: about half an hour, 30 GB of disk

Rules for editing: options are the modules' own (`python -m bench.follow --help`); here every one runs with its defaults.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time

NAMES = ("latency", "follow", "takeover", "recover", "transfer", "remote_exec", "store", "choosing", "rented")
ON_GPU = ("lora",)  # run only when they are named


def main() -> int:
    """Run what was asked for; returns how many failed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Run benchmarks and print their tables.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all of {', '.join(NAMES)}; on a GPU also {', '.join(ON_GPU)}")
    names = parser.parse_args().names or NAMES
    if unknown := [name for name in names if name not in NAMES + ON_GPU]:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(NAMES + ON_GPU)}")
    print(f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}", flush=True)
    failed = 0
    for name in names:
        print(f"\n## {name}, load {os.getloadavg()[0]:.1f}\n", flush=True)
        began = time.monotonic()
        failed += subprocess.run([sys.executable, "-m", f"bench.{name}"]).returncode != 0
        print(f"\n({time.monotonic() - began:.0f} s)", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
