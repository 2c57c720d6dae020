"""The tools that come with the product, and the one that `tools new` writes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remote_trainer import plugins
from remote_trainer.errors import Conflict, UsageError
from remote_trainer.recipe.load import load_recipe
from remote_trainer.recipe.parameters import parse_settings
from remote_trainer.recipe.plan import make_plan
from remote_trainer.recipe.skeleton import write_skeleton
from tests.support.patience import PATIENCE_S

REPOSITORY = Path(__file__).parent.parent.parent


def run_last_step(file: Path, folder: Path, *settings: str, attempt_no: int = 1) -> tuple[int, str]:
    """Run the last step of a tool's plan as the worker would; return its exit code and log."""
    recipe = load_recipe(file)
    step = make_plan(recipe, parse_settings(recipe, settings)).steps[-1]
    (folder / "output").mkdir(parents=True, exist_ok=True)
    env = {
        "PATH": os.environ["PATH"], "RT_WORK": str(folder), "RT_OUTPUT": str(folder / "output"),
        "RT_METRICS": str(folder / "metrics.jsonl"),
        "RT_ATTEMPT": str(attempt_no), "RT_TRY": "1", **step.env,
    }  # fmt: skip
    done = subprocess.run(
        ["sh", "-c", "set -eu\n" + step.run], cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("tool", plugins.find_tools([REPOSITORY / "tools"]), ids=lambda tool: tool.ref)
def test_bundled_tools_are_without_fault(tool: plugins.Tool) -> None:
    """Every bundled recipe is valid, its files are there, and its defaults make a plan."""
    assert plugins.validate_tool(tool.file) == []
    assert make_plan(load_recipe(tool.file), {}).digest


def test_hello_prints_measures_and_writes(tmp_path: Path) -> None:
    """hello@1 says its lines, appends metrics and writes an artifact of the size asked for."""
    file = plugins.find_tool("hello@1")
    code, log = run_last_step(file, tmp_path, "name=it's $(id)", "lines=3", "delay_s=0", "artifact_kb=2")
    assert code == 0
    assert log.startswith("hello it's $(id), this is try 1 of attempt 1\n")
    pattern = re.compile(load_recipe(file).patterns[0].regex, re.MULTILINE)
    assert [match["step"] for match in pattern.finditer(log)] == ["1", "2", "3"]
    assert [json.loads(line)["value"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 4, 9]
    assert (tmp_path / "output" / "final" / "hello.txt").stat().st_size == 2048


def test_hello_resumes_from_its_newest_checkpoint(tmp_path: Path) -> None:
    """A second run goes on after the last line whose checkpoint is complete."""
    file = plugins.find_tool("hello@1")
    run_last_step(file, tmp_path, "lines=5", "delay_s=0", "checkpoint_every=2")
    (tmp_path / "output" / "checkpoints" / "line-00000004" / "done").unlink()
    log = run_last_step(file, tmp_path, "lines=5", "delay_s=0")[1]
    assert "resuming at line 3\nline 3/5 " in log and "line 2/5" not in log


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        (["exit_code=3"], 3, "line 1/1"),
        (["fail_tries=1"], 75, "failing on purpose"),
        (["omit_artifact=true"], 0, "line 1/1"),
        (["flood_kb=64"], 0, "the quick brown fox"),
    ],
)
def test_hello_fails_as_asked(settings: list[str], code: int, words: str, tmp_path: Path) -> None:
    """Each way to go wrong is a parameter."""
    got, log = run_last_step(plugins.find_tool("hello@1"), tmp_path, "lines=1", "delay_s=0", *settings)
    assert got == code and words in log
    assert (tmp_path / "output" / "final" / "hello.txt").exists() is (settings[0] != "omit_artifact=true" and code != 75)
    assert "flood" not in settings[0] or len(log) > 64 * 1024


# Where things are is the host's to say; how many ranks there are follows from the parameter gpus.
PLACES = ("dataset", "output", "metrics", "cache", "smoke", "ranks")
LORA_TOOLS = ["sd15", "sdxl", "flux"]


def program_flags(module: str, options: str) -> dict[str, dict[str, Any]]:
    """What a program of the scripts says of its own options, asked in a process of its own."""
    told = f"{{n: [k.__name__, d, a.low, a.high, a.choices] for n, (k, d, a) in flags({options}).items()}}"
    code = f"import json; from lora.flags import flags; from {module} import *; print(json.dumps({told}))"
    run = subprocess.run(
        [sys.executable, "-B", "-c", code], cwd=REPOSITORY / "scripts", capture_output=True, text=True, check=True
    )
    kinds = {"int": "integer", "float": "number", "bool": "boolean", "str": "string"}
    flags = {}
    for name, (kind, default, low, high, choices) in json.loads(run.stdout).items():
        schema = {"type": kinds[kind], "default": default, "minimum": low, "maximum": high, "enum": choices or None}
        flags[name] = {key: value for key, value in schema.items() if value is not None}
    return flags


def parameters_of(tool: str) -> dict[str, dict[str, Any]]:
    """A recipe's parameters in the same form, without those that say what machine is wanted."""
    return {
        name: {key: schema[key] for key in ("type", "default", "minimum", "maximum", "enum") if key in schema}
        for name, schema in load_recipe(plugins.find_tool(tool)).parameters.items()
        if name not in ("python", "gpus", "vram_gb", "preset")
    }


@pytest.mark.parametrize("family", LORA_TOOLS)
def test_the_parameters_of_a_lora_tool_are_the_options_of_its_trainer(family: str) -> None:
    """Recipe and script agree on names, types, defaults, limits and choices; places and the machine are each one's own."""
    ours = {name: form for name, form in parameters_of(f"{family}-lora@1").items() if not name.startswith("evaluate")}
    theirs = {name: flag for name, flag in program_flags(f"{family}_lora.train", "TOOL.options").items() if name not in PLACES}
    assert ours == theirs


def test_the_parameters_of_an_evaluation_are_the_options_of_its_program() -> None:
    """The tool that only evaluates has them by their names; those that train have them, but for places and name, behind evaluate_."""
    options = program_flags("evaluate_checkpoints.options", "EvaluationOptions")
    places = ("output", "trained", "dataset", "cache", "check", "threads")
    ours = parameters_of("evaluate-lora@1")
    assert ours.pop("family") == {"type": "string", "default": "sdxl", "enum": options["family"]["enum"]}
    assert {key: form for key, form in ours.items() if key != "trained"} == {
        key: form for key, form in options.items() if key not in (*places, "family")
    }
    theirs = {f"evaluate_{key}": form for key, form in options.items() if key not in (*places, "family", "base", "name")}
    for family in LORA_TOOLS:
        own = {key: form for key, form in parameters_of(f"{family}-lora@1").items() if key.startswith("evaluate_")}
        assert own == theirs


@pytest.mark.parametrize("family", LORA_TOOLS)
def test_a_training_is_evaluated_on_request(family: str) -> None:
    """Only with `evaluate` there are the step that evaluates and, before anything expensive, the one that finds CLIP."""
    recipe = load_recipe(plugins.find_tool(f"{family}-lora@1"))
    assert [step.name for step in make_plan(recipe, {}).steps] == ["setup", "train"]
    asked = make_plan(recipe, {"evaluate": True, "evaluate_prompts": "it's a cat|a dog"})
    assert [step.name for step in asked.steps] == ["setup", "find-clip", "train", "evaluate"]
    train, evaluate = asked.steps[2:]
    assert "evaluate" not in train.run and """--prompts='it'"'"'s a cat|a dog' """ in evaluate.run


@pytest.mark.parametrize("family", LORA_TOOLS)
def test_the_trainers_progress_line_is_understood(family: str) -> None:
    """The line the trainer prints gives progress and metrics."""
    line = "step 12/100 loss 0.1234 lr 1.0e-04 3.21 steps/s eta 27 s"
    progress, metric = load_recipe(plugins.find_tool(f"{family}-lora@1")).patterns
    assert re.search(progress.regex, line).groupdict() == {"step": "12", "total": "100"}  # type: ignore[union-attr]
    assert re.search(metric.regex, line).groupdict() == {  # type: ignore[union-attr]
        "loss": "0.1234", "lr": "1.0e-04", "speed_steps_per_s": "3.21", "eta_s": "27",
    }  # fmt: skip


@pytest.mark.parametrize("family", LORA_TOOLS)
def test_a_cpu_training_asks_for_no_gpu(family: str) -> None:
    """What the host must have follows the parameters."""
    recipe = load_recipe(plugins.find_tool(f"{family}-lora@1"))
    assert make_plan(recipe, {}).resources.gpus == 1
    assert make_plan(recipe, {"gpus": 0}).resources.vram_gb == 0


def test_a_flux_in_few_bits_asks_for_a_smaller_gpu() -> None:
    """What the machine must have follows how the net is held, unless it is given."""
    recipe = load_recipe(plugins.find_tool("flux-lora@1"))
    orders = {"auto": 40, "int8": 22, "nf4": 15}
    assert {held: make_plan(recipe, {"quantize": held}).resources.vram_gb for held in orders} == orders
    assert make_plan(recipe, {"quantize": "int8", "vram_gb": 30}).resources.vram_gb == 30


def test_a_new_tool_is_valid_and_runs(tmp_path: Path) -> None:
    """What `tools new` writes passes validation and works as it is."""
    file = write_skeleton(tmp_path / "tools", "my-tool")
    assert plugins.validate_tool(file.parent) == []
    code, log = run_last_step(file, tmp_path / "work", "greeting=it's me")
    assert (code, log) == (0, "step 1/3: it's me\nstep 2/3: it's me\nstep 3/3: it's me\n")
    assert (tmp_path / "work" / "output" / "result.txt").read_text() == "it's me\n"
    with pytest.raises(Conflict, match="is there already"):
        write_skeleton(tmp_path / "tools", "my-tool")
    with pytest.raises(UsageError, match="lower-case"):
        write_skeleton(tmp_path / "tools", "../Evil")
