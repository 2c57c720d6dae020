"""Several processes that train as one: who they are, how they agree, and how they are started.

    launch(argv, count, stopping)   starts one process a rank and ends with the exit code of the first that fails
    joined()                        this process among its fellows, by the variables that torchrun sets, too; alone without them
    Ranks                           shares of work, sums of gradients, and answers that all ranks give alike

Each rank makes its own passes of a step, and all learn from the sum of their gradients, so that a training with N ranks is that of one
rank with N times as many passes a step. Only the first rank writes.

Editing rules: what all ranks must do equally often (each method that says so) stands outside of anything that only one of them does.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import IO, TYPE_CHECKING, TypeVar

from lora.ends import BadInput, End, Interrupted

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
# How long ranks wait for each other: the first may encode or sample alone meanwhile. One that has died is found by who started it.
PATIENCE = timedelta(hours=6)
# How long the others have to end by themselves once one has ended, s: a stopped one saves a checkpoint.
STOP_S, FAILED_S = 100.0, 10.0
FORESEEN = frozenset(end.exit_code for end in End.__subclasses__())


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process and its fellows."""

    number: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.number == 0

    def mine(self, items: Sequence[Item]) -> Sequence[Item]:
        """This rank's share of the items."""
        return items[self.number :: self.count]

    def wait(self) -> None:
        """Wait for the others; all ranks call it equally often."""
        self.any(False)

    def any(self, mine: bool) -> bool:
        """Whether it is so for any of the ranks; all ranks call it equally often."""
        import torch

        return mine if self.count == 1 else bool(self.total(torch.tensor([float(mine)])))

    def least(self, mine: float) -> float:
        """The smallest of what the ranks have; all ranks call it equally often."""
        if self.count == 1:
            return mine
        import torch

        each = torch.zeros(self.count, dtype=torch.float64)
        each[self.number] = mine
        return float(self.total(each).min())

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks; all ranks call it equally often."""
        if self.count > 1:
            import torch.distributed as dist

            dist.all_reduce(values)
        return values

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter], loss: torch.Tensor) -> None:
        """Make each gradient, and the loss, the sum over all ranks, in one message; all ranks call it equally often."""
        if self.count == 1:
            return
        import torch

        pieces = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = self.total(torch.cat([*(piece.flatten() for piece in pieces), loss.reshape(1)]))
        for piece, summed in zip([*pieces, loss], flat.split([*(piece.numel() for piece in pieces), 1]), strict=True):
            piece.copy_(summed.view_as(piece))


ALONE = Ranks()


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """This process among its fellows; within it, ranks but the first say nothing on standard output."""
    ranks = Ranks(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    if ranks.count == 1:
        yield ranks
        return
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # What lies on the CPU is agreed on over gloo, gradients on GPUs over NCCL.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    with contextlib.ExitStack() as stack:
        if not ranks.first:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w", encoding="utf-8"))))
        yield ranks
        ranks.wait()  # a rank that leaves while another still speaks to it breaks that one
        dist.destroy_process_group()


def wanted(asked: int) -> int:
    """How many ranks to start: as asked, or one for each GPU."""
    if "RANK" in os.environ or asked == 1:
        return 1  # this is one of them
    import torch

    found = torch.cuda.device_count()
    if asked > found > 0:
        raise BadInput(f"--ranks is {asked}, but there are {found} GPUs here; one rank needs a GPU of its own")
    return asked or max(1, found)


def launch(argv: Sequence[str], count: int, stopping: Callable[[], None]) -> int:
    """Start the ranks and return 0, or the exit code of the first that failed, once none is left.

    A stop is passed on to all. Of what the ranks say of their failures, the first rank's is told as it comes, another's if it is the cause.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with contextlib.ExitStack() as stack:
        said = [None, *(stack.enter_context(tempfile.TemporaryFile()) for _ in range(count - 1))]
        ranks = [
            subprocess.Popen([sys.executable, *argv], env={**common, "RANK": str(n), "LOCAL_RANK": str(n)}, stderr=said[n])
            for n in range(count)
        ]
        try:
            return ended(ranks, said, stopping)
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()


def ended(ranks: Sequence[subprocess.Popen[bytes]], said: Sequence[IO[bytes] | None], stopping: Callable[[], None]) -> int:
    """Wait for all; once one has ended badly, or a stop is asked for, the others are to end soon."""
    deadline, causes, stopped = None, list[int](), False
    while None in [rank.poll() for rank in ranks]:
        failed = [number for number, rank in enumerate(ranks) if rank.returncode]
        if (failed and not causes) or (not stopped and asked(stopping)):
            stopped = stopped or not failed
            for rank in ranks:
                rank.terminate()
        causes = causes or failed
        if causes and deadline is None:
            kept = ranks[causes[0]].returncode == Interrupted.exit_code
            deadline = time.monotonic() + (STOP_S if kept else FAILED_S)
        if deadline is not None and time.monotonic() > deadline:
            for rank in ranks:
                rank.kill()
        time.sleep(0.05)
    code = verdict([rank.returncode for rank in ranks], causes, said)
    return Interrupted.exit_code if stopped and code > 128 else code  # it was stopped before it could listen


def verdict(codes: Sequence[int], causes: Sequence[int], said: Sequence[IO[bytes] | None]) -> int:
    """The exit code for all: a foreseen end, or who ended before the others were told to, before what may only follow from these."""
    failed = [number for number, code in enumerate(codes) if code]
    if not failed:
        return 0
    number = min(failed, key=lambda n: (codes[n] not in FORESEEN, n not in causes, n))
    if (words := said[number]) is not None:
        words.seek(0)
        sys.stderr.write(words.read().decode(errors="replace"))
    return codes[number] if codes[number] > 0 else 128 - codes[number]


def asked(stopping: Callable[[], None]) -> bool:
    """Whether a stop has been asked for."""
    try:
        stopping()
    except Interrupted:
        return True
    return False
