"""Presets: which one is taken for which data, what it sets, and what stays as the user set it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from remote_trainer import plugins
from remote_trainer.document import from_json, to_json
from remote_trainer.errors import RecipeError
from remote_trainer.model import Facts, Plan
from remote_trainer.recipe.load import load_recipe, override_presets
from remote_trainer.recipe.parameters import parse_settings
from remote_trainer.recipe.plan import make_plan, plan_digest
from remote_trainer.recipe.recipe import Recipe

RECIPE = """\
name: t
version: 1
description: T
parameters:
  rank: {type: integer, default: 16, minimum: 1, description: Rank}
  alpha: {type: number, default: 8.0, description: Alpha}
  steps: {type: integer, default: 100, minimum: 1, maximum: 900, x-unit: steps, description: Steps}
  prior: {type: string, default: '', description: Prior}
expected_hours: '{{ steps / 100 }}'
steps: [{name: a, run: "printf '%s' {{ parameters | json }}"}]
"""
PRESETS = """\
presets:
  - name: small
    when: images < 10
    values:
      rank: {value: 4, because: few images}
      alpha: {value: '{{ rank / 2 }}', because: half the rank}
      steps: {value: '{{ images * 100 }}', because: a hundred each}
    advice:
      - {text: give a prior, when: not prior}
      - {text: look at the samples}
  - name: large
    when: images >= 20 or prior == "much"
    values:
      alpha: {value: 1, because: one, when: rank > 16}
      prior: {value: pictures, because: of old}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE + PRESETS)
    return load_recipe(file)


def plain(folder: Path) -> Path:
    """The file of the same tool without presets."""
    file = folder / "plain.yaml"
    file.write_text(RECIPE)
    return file


def planned(recipe: Recipe, images: int | None, *settings: str) -> Plan:
    return make_plan(recipe, parse_settings(recipe, settings), None if images is None else Facts(images=images, files=images))


@pytest.mark.parametrize(
    ("images", "settings", "name"),
    [
        (1, (), "small"),
        (9, (), "small"),
        (10, (), "none"),
        (10, ("prior=much",), "large"),
        (20, (), "large"),
        (20, ("preset=small", "steps=1"), "small"),
        (1, ("preset=none",), "none"),
        (None, (), "none"),
        (None, ("preset=large",), "none"),
    ],
)
def test_the_first_preset_that_fits_is_taken_unless_one_is_named(
    recipe: Recipe, images: int | None, settings: tuple[str, ...], name: str
) -> None:
    """And none before anything is known of the data; the plan says which it was."""
    assert planned(recipe, images, *settings).parameters["preset"] == name


def test_a_preset_sets_what_the_user_has_not_set(recipe: Recipe) -> None:
    """Each value has its reason; what follows from others follows from the user's; what stays is told beside the preset's."""
    plan = planned(recipe, 5, "rank=16", "prior=x")
    assert plan.parameters == {"rank": 16, "alpha": 8.0, "steps": 500, "prior": "x", "preset": "small"}
    assert plan.preset is not None and plan.preset.facts.images == 5
    assert plan.preset.reasons == {"alpha": "half the rank", "steps": "a hundred each"}
    assert (plan.preset.kept, plan.preset.advice) == ({"rank": 4}, ("look at the samples",))
    assert plan.expected_hours == 5.0  # the run is as long as the preset makes it, and is known to be


def test_values_and_advice_may_have_conditions(recipe: Recipe) -> None:
    """Where a condition is false nothing is set and nothing told."""
    large = planned(recipe, 20).preset
    assert large is not None and set(large.reasons) == {"prior"}
    assert planned(recipe, 20, "rank=17").parameters["alpha"] == 1.0
    small = planned(recipe, 1).preset
    assert small is not None and small.advice == ("give a prior", "look at the samples")


def test_where_no_preset_fits_that_is_known(recipe: Recipe) -> None:
    """Nothing is set; for how many images is told all the same. Who wants none is told nothing."""
    none = planned(recipe, 12).preset
    assert none is not None and (none.name, none.facts.images, none.reasons) == ("none", 12, {})
    assert planned(recipe, 12, "preset=none").preset is None


def test_a_value_that_cannot_be_is_told_with_its_place(recipe: Recipe) -> None:
    """What only this data makes wrong names file, line and field, and the way out; what the user has set cannot be wrong so."""
    with pytest.raises(RecipeError) as caught:
        planned(recipe, 0)
    assert [(fault.file, fault.line, fault.field) for fault in caught.value.faults] == [
        (recipe.file, 17, "/presets/0/values/steps/value")
    ]
    assert "must be a whole number, 1 to 900 steps, not 0; set steps yourself" in str(caught.value)
    assert planned(recipe, 0, "steps=7").parameters["steps"] == 7


def test_scripts_know_the_values_and_not_the_preset(recipe: Recipe) -> None:
    """A tool hands on its parameters as it always did, whether it has presets, or somebody's file gives it some."""
    assert planned(recipe, 20).steps[0].run == "printf '%s' " + "'" + (
        '{"alpha": 8.0, "prior": "pictures", "rank": 16, "steps": 100}' + "'"
    )


def test_a_plan_keeps_its_preset(recipe: Recipe) -> None:
    """Values and words are frozen with the plan; the words alone do not make it another plan."""
    plan = planned(recipe, 5)
    again = from_json(Plan, to_json(plan))
    assert again == plan and plan_digest(again) == plan.digest
    assert plan.preset is not None
    other = dataclasses.replace(plan, preset=dataclasses.replace(plan.preset, reasons={"rank": "other words"}))
    assert plan_digest(other) == plan.digest != planned(recipe, 6).digest


def test_a_tool_without_presets_is_as_it_was(tmp_path: Path) -> None:
    """It has no parameter for them, and data changes nothing of its plan."""
    recipe = load_recipe(plain(tmp_path))
    assert "preset" not in recipe.parameters
    assert planned(recipe, 5) == planned(recipe, None)


def test_a_file_stands_in_for_the_presets_of_a_tool(recipe: Recipe, tmp_path: Path) -> None:
    """It has the form of a recipe's section, replaces all of it, and works for a tool without presets, too."""
    own = tmp_path / "own.yaml"
    own.write_text("presets:\n  - name: mine\n    values:\n      rank: {value: 7, because: I like it}\n")
    plan = planned(override_presets(recipe, own), 5, "preset=mine")
    assert plan.parameters == {"rank": 7, "alpha": 8.0, "steps": 100, "prior": "", "preset": "mine"}
    bare = load_recipe(plain(tmp_path))
    assert planned(override_presets(bare, own), 5).parameters["rank"] == 7
    with pytest.raises(RecipeError, match='one of "auto", "none", "mine"'):
        planned(override_presets(recipe, own), 5, "preset=small")


@pytest.mark.parametrize(
    ("text", "line", "field", "words"),
    [
        ("presets:\n  - name: a\n    values: {rnk: {value: 1, because: x}}\n", 3, "/presets/0/values/rnk", "'rank'"),
        ("presets:\n  - name: a\n    vals: {}\n", 3, "/presets/0/vals", "'values'"),
        ("presets:\n  - {name: a, values: {rank: {value: 0, because: x}}}\n", 2, "/presets/0/values/rank/value", "1 or more"),
        ("name: t\n", 1, "", "'presets' is missing"),
        ("- presets\n", 1, "", "must be a mapping"),
        ("", 1, "", "empty"),
    ],
)
def test_what_is_wrong_with_such_a_file_is_told(
    recipe: Recipe, tmp_path: Path, text: str, line: int, field: str, words: str
) -> None:
    """Each fault with file, line and field."""
    own = tmp_path / "own.yaml"
    own.write_text(text)
    with pytest.raises(RecipeError) as caught:
        override_presets(recipe, own)
    found = {(fault.file, fault.line, fault.field): fault.message for fault in caught.value.faults}
    assert words in found[str(own), line, field]


def test_a_fault_that_data_makes_in_such_a_file_lies_there(recipe: Recipe, tmp_path: Path) -> None:
    """Not in the recipe."""
    own = tmp_path / "own.yaml"
    own.write_text("presets:\n  - name: a\n    values:\n      rank: {value: '{{ images }}', because: x}\n")
    with pytest.raises(RecipeError) as caught:
        planned(override_presets(recipe, own), 0)
    assert [(fault.file, fault.line) for fault in caught.value.faults] == [(str(own), 4)]


# ------------------------------------------------------------------------------------------------------ the bundled ones

COUNTS = [1, 29, 30, 79, 80, 199, 200, 400, 401, 999, 1000, 20_000]
BUNDLED = {name: load_recipe(plugins.find_tool(f"{name}-lora@1")) for name in ("sd15", "sdxl", "flux")}


def bundled(name: str, images: int, *settings: str) -> dict[str, Any]:
    return dict(planned(BUNDLED[name], images, *settings).parameters)


@pytest.mark.parametrize("name", BUNDLED)
@pytest.mark.parametrize("images", COUNTS)
def test_the_lora_tools_have_a_preset_for_any_number_of_images(name: str, images: int) -> None:
    """The limits are 80 and 400; however large a batch is, there is a step to take."""
    values = bundled(name, images)
    assert values["preset"] == ("small" if images < 80 else "medium" if images <= 400 else "large")
    assert bundled(name, images, "batch_size=256", "grad_accumulation=1024", "gpus=8")["steps"] == 1


def test_few_images_train_a_small_locon_that_cannot_learn_them_by_heart() -> None:
    """Below 80: rank 8 to 16, convolutions at most at 8 with half as much alpha, dropout, min-SNR, noise offset; prior images advised."""
    for images, rank in ((20, 8), (79, 16)):
        plan = planned(BUNDLED["sdxl"], images)
        wanted = {
            "targets": "locon", "rank": rank, "alpha": rank / 2, "conv_rank": 8, "conv_alpha": 4.0, "dropout": 0.1,
            "caption_dropout": 0.1, "min_snr_gamma": 5.0, "noise_offset": 0.0357,
        }  # fmt: skip
        assert wanted.items() <= plan.parameters.items()
        assert plan.preset is not None and "--set prior=" in plan.preset.advice[0]
    chosen = planned(BUNDLED["sdxl"], 20, "prior=old", "network=loha", "rank=4")
    assert chosen.preset is not None and chosen.preset.advice == ()
    assert {"targets": "attention", "conv_rank": 0, "rank": 4, "alpha": 2.0}.items() <= chosen.parameters.items()


def test_more_images_fill_larger_ranks_and_some_are_held_out() -> None:
    """80 to 400: rank 16 to 32; above: 32 to 64, a falling rate after a rise, the average. FLUX learns at half of these, without LoCon."""
    held = [(bundled("sdxl", n)["rank"], bundled("flux", n)["rank"], bundled("sdxl", n)["val_fraction"]) for n in COUNTS[4:]]
    assert held == [(16, 8, 0.1), (16, 8, 0.1), (32, 16, 0.1), (32, 16, 0.1), *[(32, 16, 0.05)] * 2, *[(64, 32, 0.05)] * 2]
    large = bundled("sdxl", 500)
    assert (large["steps"], large["warmup"], large["lr_schedule"], large["ema"]) == (4000, 200, "cosine", 0.99)
    assert {bundled("flux", images)["targets"] for images in COUNTS} == {"attention"}


@pytest.mark.parametrize("name", BUNDLED)
def test_prodigy_has_the_rate_that_it_wants(name: str) -> None:
    """It multiplies what it finds by the rate: 1, unless the user has another; the rate of the others would teach nothing."""
    rates = [bundled(name, n, "optimizer=prodigy")["lr"] for n in (20, 200, 500)]
    assert rates == [1.0] * 3 and bundled(name, 20)["lr"] == 1e-4
    assert bundled(name, 20, "optimizer=prodigy", "lr=0.5")["lr"] == 0.5


def test_the_number_of_steps_follows_the_images_and_the_batch() -> None:
    """So many views of each image, whatever the passes of a step and beside prior images; the hours that are expected follow."""
    assert [bundled("sdxl", n)["steps"] for n in (10, 60, 79, 80, 250, 401, 20_000)] == [1000, 1200, 1500, 1500, 2500, 3208, 8000]
    assert bundled("sdxl", 60, "batch_size=4", "gpus=2")["steps"] == 150
    assert bundled("sdxl", 60, "prior=others")["steps"] == 2400
    several = planned(BUNDLED["sdxl"], 60, "prior=others"), planned(BUNDLED["sdxl"], 60, "prior_prompt=a cat")
    assert several[0].expected_hours < several[1].expected_hours
    assert planned(BUNDLED["sdxl"], 60).expected_hours < planned(BUNDLED["sdxl"], 250).expected_hours


def test_both_stable_diffusions_have_the_same_presets() -> None:
    """What is known of one holds for the other."""
    assert BUNDLED["sd15"].presets == BUNDLED["sdxl"].presets
