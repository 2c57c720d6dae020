"""How a training can end other than well: one exception and one exit code for each.

Editing rules: the codes are a contract with whoever runs this program; add, never renumber.
"""

from __future__ import annotations


class End(Exception):
    """The training is over; the message says what happened, to what, and what to do."""

    exit_code = 1


class BadInput(End):
    """What the user gave cannot be trained on."""

    exit_code = 2


class Unavailable(End):
    """The base could not be fetched from the hub; another try may succeed."""

    exit_code = 69


class WrongFile(End):
    """A LoRA that was written does not read back as what was trained."""

    exit_code = 70


class OutOfMemory(End):
    """The GPU's memory does not suffice."""

    exit_code = 71


class CannotWrite(End):
    """A file could not be written or read: the disk is full, or a permission is missing."""

    exit_code = 74


class Interrupted(End):
    """Asked to stop by a signal; the work is kept and the same command goes on with it."""

    exit_code = 75


class NotANumber(End):
    """The loss or a gradient is no longer finite."""

    exit_code = 76
