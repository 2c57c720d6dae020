"""Runs a training program in its own process as its author wrote it, and looks on: steps, memory, start, operations.

    python bench/lora_probe.py SETTINGS PROGRAM ARGUMENT …     # SETTINGS: the JSON of lora_programs.Look

The program is not changed and need not say anything: each step of any torch optimiser is seen from outside, by torch's own hook. The
result is written to the file that the settings name, and the program is ended once the last step was measured.

Rules for editing: standard library until the program itself has loaded torch; what is done within a measured step is one clock's read.
"""

from __future__ import annotations

import json
import resource
import runpy
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

INTERVAL_S = 0.01
IMPORTS = "imports"
OUT_OF_MEMORY = 71  # our trainers' exit code
SHORT = ("out of memory", "ALLOC_FAILED")  # how the libraries below torch put it
# Operations that start nothing on a GPU.
IDLE = ("empty", "new_empty", "detach", "alias", "_unsafe_view", "_reshape_alias", "lift_fresh", "is_same_size")


class Measured(BaseException):
    """The last step that was wanted is over."""


class Watch(threading.Thread):
    """Notes where the main thread is until the first step is over: how often in which function of the program."""

    def __init__(self, root: str) -> None:
        super().__init__(daemon=True)
        self._root, self._main, self._over = root, threading.main_thread().ident, threading.Event()
        self.places: Counter[str] = Counter()

    def run(self) -> None:
        while not self._over.wait(INTERVAL_S):
            if frame := sys._current_frames().get(self._main or 0):
                self.places[self.place(frame)] += 1

    def place(self, frame: FrameType | None) -> str:
        """The innermost function of the program on the stack, or that something is being imported."""
        found = ""
        while frame:
            file = frame.f_code.co_filename
            if "importlib._bootstrap" in file:
                return IMPORTS
            if not found and file.startswith(self._root):
                found = f"{file[len(self._root) :].lstrip('/')}: {frame.f_code.co_name}"
            frame = frame.f_back
        return found or "elsewhere"

    def stop(self, seconds: float) -> dict[str, float]:
        """Seconds by place, the longest first."""
        self._over.set()
        total = max(1, self.places.total())
        return {place: round(seconds * count / total, 2) for place, count in self.places.most_common(12)}


class Probe:
    """Waits for torch, then hooks into its optimisers."""

    def __init__(self, look: dict[str, Any], root: str) -> None:
        self.look, self.began = look, look["began"]
        self.found: dict[str, Any] = {"started_s": time.time() - self.began, "ends_s": []}
        self.watch, self.counter = Watch(root), None
        self.watch.start()

    def hook(self) -> None:
        """Be told of each optimiser step."""
        import torch
        from torch.optim import optimizer

        self.torch, self.cuda = torch, torch.cuda.is_available()
        optimizer.register_optimizer_step_pre_hook(lambda *_: self.before())
        optimizer.register_optimizer_step_post_hook(lambda *_: self.after())

    def before(self) -> None:
        if self.counter:
            self.counter.phase = "optimiser"

    def after(self) -> None:
        """A step is over: note when, and do what is due at this one."""
        if self.counter:
            self.counter.phase = "forward"
        done, warm, last = len(self.found["ends_s"]) + 1, self.look["warmup"], self.look["warmup"] + self.look["steps"]
        if self.cuda and done in (1, warm, last):
            self.torch.cuda.synchronize()
        self.found["ends_s"].append(time.time() - self.began)
        if done == 1:
            self.found["start"] = self.watch.stop(self.found["ends_s"][0] - self.found["started_s"])
            self.found["start_peak_gib"] = self.peak()
            self.found["outside_gib"] = self.outside()
        if done == warm and self.cuda:
            self.torch.cuda.reset_peak_memory_stats()
        if done == warm and self.look["count"]:
            self.counter = operations()
            self.counter.__enter__()
        if done == last:
            raise Measured

    def peak(self) -> float:
        return self.torch.cuda.max_memory_allocated() / 2**30 if self.cuda else 0.0

    def outside(self) -> float:
        """What lies on the GPU besides torch's own memory: the context and the libraries, if nobody else uses it."""
        if not self.cuda:
            return 0.0
        free, total = self.torch.cuda.mem_get_info()
        return (total - free - self.torch.cuda.memory_reserved()) / 2**30

    def finish(self, end: str) -> None:
        """Write the result."""
        if self.counter:
            self.counter.__exit__(None, None, None)
            self.found["operations"] = self.counter.each(self.look["steps"])
        if hasattr(self, "torch"):
            self.found["peak_gib"] = self.peak()
            self.found["reserved_gib"] = self.torch.cuda.max_memory_reserved() / 2**30 if self.cuda else 0.0
        self.found |= {"end": end, "rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
        Path(self.look["result"]).write_text(json.dumps(self.found))


def operations() -> Any:
    """Counts what torch is asked to compute, after autograd and autocast have had their say, by phase and name."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Operations(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.phase, self.counts = "forward", Counter[tuple[str, str]]()  # "forward": and the clipping of gradients

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = func._schema.name.removeprefix("aten::")
            if not func.is_view and not name.startswith(IDLE):
                backward = torch._C._current_autograd_node() is not None
                self.counts["backward" if backward else self.phase, name] += 1
            return func(*args, **(kwargs or {}))

        def each(self, steps: int) -> dict[str, dict[str, float]]:
            """Mean of a step: phase → name → count."""
            phases: dict[str, dict[str, float]] = {}
            for (phase, name), count in self.counts.most_common():
                phases.setdefault(phase, {})[name] = round(count / steps, 2)
            return phases

    return Operations()


def main() -> None:
    look, program = json.loads(sys.argv[1]), Path(sys.argv[2]).resolve()
    sys.argv = [str(program), *sys.argv[3:]]
    sys.path[0] = str(program.parent)  # as if the program had been started itself
    probe, end = Probe(look, str(program.parent.parent)), "too few steps"
    try:
        probe.hook()
        runpy.run_path(str(program), run_name="__main__")
    except Measured:
        end = "measured"
    except SystemExit as error:
        end = "out of memory" if error.code == OUT_OF_MEMORY else f"exit code {error.code}" if error.code else end
        if error.code:
            raise
    except BaseException as error:
        short = type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in SHORT)
        end = "out of memory" if short else f"{type(error).__name__}: {error}"
        raise
    finally:
        probe.finish(end)


if __name__ == "__main__":
    main()
