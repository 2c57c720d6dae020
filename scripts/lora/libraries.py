"""Loads the libraries that train, in half the time that they take by themselves.

    with loading():
        from lora.loop import train

Editing rules: standard library only until something is loaded; what is hidden is hidden while libraries are loaded, and not after.
"""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# PEFT loads it, and with it torch's compiler, only to ask of each layer whether it is one of its own. Here nf4 and the 8-bit optimiser
# use it, and load it themselves.
HIDDEN = "bitsandbytes"


@contextmanager
def loading() -> Iterator[None]:
    """Load libraries in this block: what they are made of stays, and is not looked through for garbage now, later or at the end."""
    hide = HIDDEN not in sys.modules
    gc.disable()
    try:
        if hide:
            sys.modules[HIDDEN] = None  # type: ignore[assignment]  # Python's own way to say that there is no such module
        yield
        if "peft" in sys.modules:
            sys.modules["peft"].import_utils.is_bnb_available()  # asked for each layer later, it remembers its answer
    finally:
        if hide:
            del sys.modules[HIDDEN]
        gc.freeze()
        gc.enable()
        atexit.register(gc.freeze)
