"""Plans: rendered, frozen, and known by a digest that says the same everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from remote_trainer.document import from_json, to_json
from remote_trainer.errors import RecipeError
from remote_trainer.model import OutputKind, Plan
from remote_trainer.recipe.load import load_recipe
from remote_trainer.recipe.plan import describe_plan, glob_problem, make_plan, plan_digest

GOOD = Path(__file__).parent.parent / "fixtures" / "recipes" / "good"
EVERYTHING = load_recipe(GOOD / "everything.yaml")


def write(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text("name: t\nversion: 1\ndescription: T\n" + text)
    return file


def test_a_plan_holds_everything_rendered() -> None:
    """Steps are chosen, scripts quoted, environments merged, globs filled in."""
    plan = make_plan(EVERYTHING, {"text": "it's", "mode": "good", "note": "a b"})
    assert [step.name for step in plan.steps] == ["first", "second"]
    first, second = plan.steps
    assert first.run == "echo 'IT'\"'\"'S'"
    assert first.env == {"COUNT": "3", "FLAG": "true", "RATE": "0.0001"}
    assert second.env == {"COUNT": "4", "FLAG": "true", "RATE": "0.0001", "BASE": "some/model"}
    assert "a b --size=64 --note 'a b'\n" in second.run
    assert "echo 1 a\necho 2 b\n" in second.run
    assert '\'{"base": "some/model", "loud": false, "mode": "good", "note": "a b"' in second.run
    assert plan.outputs[1].glob == "final/good/*.bin"
    assert plan.outputs[1].kind is OutputKind.FINAL and plan.outputs[1].required
    assert plan.health == "test -d 'it'\"'\"'s'"
    assert plan.cleanup == 'rm -rf "$RT_WORK"/good'
    assert plan.required_secrets == ("HF_TOKEN",)


def test_when_leaves_steps_out() -> None:
    """A step whose condition is false is not part of the plan."""
    assert [step.name for step in make_plan(EVERYTHING, {"text": "x"}).steps] == ["second"]


def test_the_digest_depends_on_what_is_done_only() -> None:
    """Equal plans have equal digests, however the values were written; any difference makes another one."""
    one = make_plan(EVERYTHING, {"text": "x", "rate": 1, "size": 64.0})
    assert one.digest == make_plan(EVERYTHING, {"rate": 1.0, "text": "x"}).digest == plan_digest(one)
    assert one.digest != make_plan(EVERYTHING, {"text": "y", "rate": 1}).digest


def test_the_digest_survives_a_store() -> None:
    """A plan that went through JSON has the digest it had before."""
    plan = make_plan(EVERYTHING, {"text": "x"})
    again = from_json(Plan, to_json(plan))
    assert again == plan
    assert plan_digest(again) == plan.digest


def test_the_digest_of_a_plan_never_changes() -> None:
    """Another digest for the same recipe means that stored plans no longer verify: never change this number lightly."""
    plan = make_plan(load_recipe(GOOD / "smallest.yaml"), {})
    assert plan.digest == "6eb9daef607433e7b482ae46f64d68e5f335c397ac0d12afe0a485de61030ad5"


def test_changing_the_tool_does_not_change_the_plan(tmp_path: Path) -> None:
    """A plan is a value: the file it came from may change or vanish."""
    file = write(tmp_path, "steps: [{name: a, run: echo one}]\n")
    plan = make_plan(load_recipe(file), {})
    write(tmp_path, "steps: [{name: a, run: echo two}]\n")
    assert plan.steps[0].run == "echo one" and plan_digest(plan) == plan.digest
    assert make_plan(load_recipe(file), {}).digest != plan.digest


def test_what_a_plan_shows_hides_secrets() -> None:
    """Secrets appear by name only, and environment values named like secrets are masked."""
    plan = make_plan(EVERYTHING, {"text": "x"})
    assert describe_plan(plan)["steps"][0]["secrets"] == {"HF_TOKEN": "***"}


def test_an_environment_value_named_like_a_secret_is_masked(tmp_path: Path) -> None:
    """Somebody will write a password into a recipe."""
    file = write(tmp_path, "steps: [{name: a, run: 'true', env: {DB_PASSWORD: sesame, USER_NAME: me}}]\n")
    assert describe_plan(make_plan(load_recipe(file), {}))["steps"][0]["env"] == {"DB_PASSWORD": "***", "USER_NAME": "me"}


def test_all_faults_of_a_rendering_are_listed(tmp_path: Path) -> None:
    """What only these parameters make wrong is told with its line in the recipe, all at once."""
    file = write(
        tmp_path,
        """parameters:
  a: {type: string, description: A}
  g: {type: string, default: ../x, description: G}
resources: {gpus: '{{ g }}'}
steps:
  - {name: one, run: 'echo {{ a }}'}
  - {name: two, run: 'true', env: {X: '{{ a }}'}}
outputs:
  - {name: o, glob: '{{ g }}/*'}
""",
    )
    with pytest.raises(RecipeError) as caught:
        make_plan(load_recipe(file), {})
    assert [(fault.line, fault.field) for fault in caught.value.faults] == [
        (9, "/steps/0/run"), (10, "/steps/1/env/X"), (12, "/outputs/0/glob"), (7, "/resources/gpus"),
    ]  # fmt: skip


def test_a_plan_without_steps_is_refused(tmp_path: Path) -> None:
    """Parameters that leave nothing to do are a mistake."""
    file = write(tmp_path, "steps: [{name: a, run: 'true', when: 1 > 2}]\n")
    with pytest.raises(RecipeError, match="no step is left"):
        make_plan(load_recipe(file), {})


@pytest.mark.parametrize("glob", ["a", "a/*.txt", "**/*.log", "**", "step-[0-9]?"])
def test_good_globs(glob: str) -> None:
    """Relative paths with wildcards."""
    assert glob_problem(glob) == ""


@pytest.mark.parametrize("glob", ["/a", "~/a", "..", "a/..", "../a", "a//b", "a/./b", "", "/", "a**", "a\\b", "a\nb", "./a"])
def test_bad_globs(glob: str) -> None:
    """What leaves the output folder, or could be read in two ways, is refused."""
    assert glob_problem(glob)


@pytest.mark.parametrize(("hours", "planned"), [("2", 2.0), ("'{{ n * 2 / 100 }}'", 0.2), ("'{{ (n / 3) | round(2) }}'", 3.33)])
def test_a_recipe_tells_how_long_a_run_takes(tmp_path: Path, hours: str, planned: float) -> None:
    """A number, or a template over the parameters."""
    rest = "parameters: {n: {type: integer, default: 10, description: N}}\nsteps: [{name: s, run: 'true'}]\n"
    recipe = f"expected_hours: {hours}\n{rest}"
    assert make_plan(load_recipe(write(tmp_path, recipe)), {}).expected_hours == planned


def test_hours_that_are_no_number_are_a_fault(tmp_path: Path) -> None:
    """The field is named."""
    recipe = "expected_hours: 'soon'\nsteps: [{name: s, run: 'true'}]\n"
    with pytest.raises(RecipeError, match=r"expected_hours.*'soon', which is no number of hours"):
        make_plan(load_recipe(write(tmp_path, recipe)), {})
