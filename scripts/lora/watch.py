"""What a training concludes from its own losses: that one is a spike, and that the validation loss has stopped falling.

Editing rules: pure functions of what a checkpoint holds, so that a resumed training concludes the same; standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lora.options import Options

# Losses of single steps differ tenfold by the noise they drew, so a spike is measured by the largest of many. The latest ones do not
# count among these: a training that runs away doubles its loss within a few steps, and would carry the measure along.
WINDOW, LATEST, FEWEST = 200, 10, 50
# A validation loss is lower if it is by this share: below it is rounding.
NOTICEABLE = 0.001
CUT = 0.5


def spiked(recent: Sequence[float], loss: float, factor: float) -> float:
    """How many times the largest of the recent losses this one is, if it is too many; else 0."""
    settled = recent[:-LATEST]
    if factor == 0 or len(settled) < FEWEST:
        return 0.0
    times = loss / max(*settled, 1e-12)
    return times if times > factor else 0.0


def remember(recent: list[float], loss: float) -> None:
    """Add a loss that was learnt from."""
    recent.append(loss)
    del recent[: -(WINDOW + LATEST)]


def plateaus(validations: Mapping[int, float], patience: int) -> int:
    """How often so far the validation loss did not fall for that many validations in a row."""
    best, waited, found = float("inf"), 0, 0
    for _, loss in sorted(validations.items()):
        if loss < best * (1 - NOTICEABLE):
            best, waited = loss, 0
        else:
            waited += 1
        if waited == patience:
            found, waited = found + 1, 0
    return found


def rate(options: Options, rollbacks: int, validations: Mapping[int, float]) -> float:
    """Which share of the planned learning rate is left."""
    cuts = plateaus(validations, options.patience) if options.plateau == "cut" else 0
    return float(CUT ** (rollbacks + cuts))


def finished(options: Options, validations: Mapping[int, float]) -> bool:
    """Whether the training ends before its last step because nothing is gained any more."""
    return options.plateau == "stop" and plateaus(validations, options.patience) > 0
