"""Make ready what tests may use but never install: `python -m tests.support.prepare`, called by `make test`.

Rules for editing: standard library only; what cannot be made here leaves its suite out, and the reason is told now and by the tests.
"""

from __future__ import annotations

import subprocess

from tests.support import image, venvs

if __name__ == "__main__":
    for name in venvs.NAMES:
        try:
            venvs.prepare(name)
        except subprocess.CalledProcessError as error:
            print(f"{name} could not be prepared, its tests are left out: {error}")
    try:
        image.prepare()
    except subprocess.CalledProcessError as error:
        print(f"the container image could not be prepared, its tests are left out: {error}\n{error.output[-4000:]}")
