"""What a training needs of a GPU's memory, and what is turned on so that it fits: arithmetic, before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from tests.train.conftest import Train, chosen_options, tool

GB = 1e9 / 2**30
# What others measured: (family, options, rung) → GiB. HF's fp8 computes in fp8 and holds bf16.
PUBLISHED = {
    "SimpleTuner, SDXL, 1024 px, H100": ("sdxl", {"rank": 1}, ("none", False), 13.0),
    "the same, checkpointing": ("sdxl", {"rank": 1}, ("none", True), 6.5),
    "Hugging Face, FLUX, 512 x 768 px": ("flux", {"rank": 4, "resolution": 627}, ("none", True), 26 * GB),
    "the same, nf4, 8-bit AdamW": ("flux", {"rank": 4, "resolution": 627, "optimizer": "adamw8bit"}, ("nf4", True), 9 * GB),
    "the same, fp8 arithmetic": ("flux", {"rank": 4, "resolution": 627}, ("none", False), 36.6 * GB),
    "SimpleTuner, FLUX, all layers": ("flux", {"targets": "all"}, ("none", True), 30 * GB),
    "the same, int8": ("flux", {"targets": "all"}, ("int8", True), 18 * GB),
}


def need(family: str, **values: Any) -> Any:
    """A base of the real size, in bf16."""
    from lora.memory import Need

    footprint = tool(family).kind.footprint
    return Need(**{"footprint": footprint, "weights": footprint.weights, **values})


@pytest.mark.parametrize("source", PUBLISHED)
def test_estimates_are_what_others_measured(source: str) -> None:
    """Within 15 %."""
    from lora.memory import estimate

    family, options, rung, published = PUBLISHED[source]
    assert estimate(need(family), chosen_options(family, **options), rung).total == pytest.approx(published, rel=0.15)


@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux"])
def test_a_larger_card_gives_up_less(family: str) -> None:
    """From card to card the chosen rung only rises, and on 80 GB nothing is given up."""
    from lora.memory import CARDS, plan

    ladder, chosen = list(tool(family).kind.footprint.ladder), []
    for card in CARDS[1:]:
        found = plan(need(family), chosen_options(family), card * 0.98)
        assert found.estimate.total <= card * 0.98 and f"{card * 0.98:.1f}" in found.why
        chosen.append(ladder.index((found.quantize, found.gradient_checkpointing)))
    assert chosen == sorted(chosen, reverse=True) and chosen[-1] == 0


def test_what_is_asked_for_is_kept() -> None:
    """Auto decides only what was left to it; DoRA is never quantised, nor is nf4 chosen without its package."""
    from lora.ends import OutOfMemory
    from lora.memory import plan

    asked = plan(need("flux"), chosen_options("flux", quantize="fp8", gradient_checkpointing="on"), 100)
    assert (asked.quantize, asked.gradient_checkpointing) == ("fp8", True)
    assert plan(need("flux"), chosen_options("flux"), 11.7).quantize == "nf4"
    for lacking in ({"network": "dora"}, {"gradient_checkpointing": "off"}):
        with pytest.raises(OutOfMemory):
            plan(need("flux"), chosen_options("flux", **lacking), 11.7)
    with pytest.raises(OutOfMemory, match="even with net in int8, gradient checkpointing on"):
        plan(need("flux", packages=False), chosen_options("flux"), 11.7)
    assert any("exact weights" in line for line in chosen_problems(network="dora", quantize="int8"))


def chosen_problems(**values: Any) -> list[str]:
    import dataclasses

    return dataclasses.replace(chosen_options(), **values).problems()


def test_an_error_says_what_would_fit() -> None:
    """Each suggestion fits by its own estimate: fewer images a pass, smaller ones, a leaner optimiser, a larger card."""
    from lora.ends import OutOfMemory
    from lora.memory import plan

    options = chosen_options("sdxl", batch_size=4, optimizer="prodigy", rank=128, quantize="none")
    with pytest.raises(OutOfMemory) as caught:
        plan(need("sdxl"), options, 12.5)
    said = str(caught.value)
    for part in (
        "--quantize auto (about",
        "--batch-size 2 --grad-accumulation 2 (about",
        "--optimizer adafactor (about",
        "--rank 32 (about",
        "a GPU of 16 GB",
    ):
        assert part in said
    with pytest.raises(OutOfMemory, match=r"--batch-size 1 --resolution 512 --optimizer adafactor --rank 4 .*; a GPU of 12 GB"):
        plan(need("flux"), chosen_options("flux"), 7.84)


def test_a_smaller_base_needs_less() -> None:
    """Half of the weights, half of all but the reserve."""
    from lora.memory import RESERVE, estimate

    whole, half = (estimate(need("flux", weights=11.901 * part), chosen_options("flux"), ("int8", True)) for part in (1, 0.5))
    assert half.total - RESERVE == pytest.approx((whole.total - RESERVE) / 2, rel=0.01)


def test_a_training_that_goes_on_elsewhere_computes_as_it_began() -> None:
    """What auto stood for is taken from the checkpoint; what is asked for now is not overruled."""
    from lora.memory import settled

    before = {"quantize": "int8", "precision": "bf16", "rank": 99}
    found = settled(chosen_options("flux"), before)
    assert (found.quantize, found.precision, found.rank) == ("int8", "bf16", 16)
    assert settled(chosen_options("flux", quantize="nf4"), before).quantize == "nf4"
    assert settled(chosen_options("flux"), {"quantize": "auto"}).quantize == "auto"


def test_a_training_that_does_not_fit_ends_before_anything_is_loaded(train: Train) -> None:
    """With less memory to make do with than the least, nothing is encoded or written."""
    from lora.ends import OutOfMemory

    with pytest.raises(OutOfMemory, match=r"there are 0\.5\. What would fit: a GPU of 8 GB") as caught:
        train("sdxl", vram=0.5, cache="/nowhere")
    assert caught.value.exit_code == 71
