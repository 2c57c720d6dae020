"""Fixtures for the training scripts, which live outside the package and are imported as they are on a host: from their folder."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

# OpenMP threads that spin while they wait slow everything down a hundredfold on shared cores; read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
PHOTOGRAPHS = ROOT / "tests" / "fixtures" / "muybridge-cat"
sys.path.insert(0, str(SCRIPTS))

Train = Callable[..., Path]

# A profile that trains in seconds: small pictures, and the targets with which even a random base visibly learns.
TINY = {
    "resolution": 64,
    "bucket_step": 32,
    "targets": "locon",
    "rank": 4,
    "alpha": 2.0,
    "lr": 3e-3,
    "batch_size": 4,
    "val_every": 0,
    "sample_every": 0,
    "sample_count": 0,
    "checkpoint_every": 0,
    "log_every": 1,
    "threads": 1,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs the training libraries, and says so."""
    for item in items:
        if Path(item.fspath).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.train)
            # diffusers hands torch tensors to numpy in a way that numpy 2 wants changed.
            item.add_marker(pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"))


@pytest.fixture(scope="session")
def libraries() -> None:
    """The training libraries, loaded as the trainers load them."""
    from lora.libraries import loading

    with loading():
        from lora import loop  # noqa: F401


@pytest.fixture(scope="session")
def bases(libraries: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """bases(family) is a tiny base model of it, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("bases")

    def make(family: str) -> Path:
        importlib.import_module(f"make_tiny_{family}").make(folder / family)
        return folder / family

    return make


@pytest.fixture(scope="session")
def base(bases: Callable[[str], Path]) -> Path:
    """A tiny SDXL base model."""
    return bases("sdxl")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of encoded images for all trainings."""
    return tmp_path_factory.mktemp("cache")


def arguments(**options: object) -> list[str]:
    """Options as a command line."""
    named = {name.replace("_", "-"): value for name, value in options.items()}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in named.items()]


def chosen_options(family: str = "sdxl", **options: object) -> Any:
    """Options of a family's trainer, parsed as from its command line."""
    from lora.flags import parse

    return parse(arguments(**options), {}, tool(family).options)


def tool(family: str) -> Any:
    """A family's trainer."""
    return importlib.import_module(f"{family}_lora.train").TOOL


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight of the photographs, for tests that train only to look at something else."""
    folder = tmp_path_factory.mktemp("photographs")
    for image in sorted(PHOTOGRAPHS.glob("*.jpg"))[::4]:
        shutil.copy(image, folder)
        shutil.copy(image.with_suffix(".txt"), folder)
    return folder


@pytest.fixture
def train(bases: Callable[[str], Path], cache: Path, photographs: Path, tmp_path: Path) -> Train:
    """train(family, **options) trains in this process with the tiny profile and returns the output folder."""

    def run(family: str, stopping: Callable[[], None] = lambda: None, **options: object) -> Path:
        from lora.base import find
        from lora.data import survey
        from lora.laps import Laps
        from lora.loop import Task, train

        places = {"base": bases(family), "dataset": photographs, "output": tmp_path / "output", "cache": cache}
        targets = {"targets": "all"} if family == "flux" else {}
        chosen = chosen_options(family, **{**places, **TINY, **targets, **options})
        trainer = tool(family)
        train(Task(chosen, survey(chosen), find(chosen.base, trainer.kind), trainer.family()), stopping, Laps())
        return chosen.output_dir

    return run


@pytest.fixture
def run(train: Train) -> Train:
    """run(**options) trains Stable Diffusion 1.5 so: for what is the same for all families it is the quickest with a UNet."""
    return partial(train, "sd15")


@pytest.fixture(scope="session")
def clip(libraries: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP model with random weights, as the hub lays one out."""
    import torch
    from make_tiny_sdxl import END, START, vocabulary, write_tokenizer
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip") / "tiny-clip"
    ids, _ = vocabulary()
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": ids[START], "eos_token_id": ids[END], "pad_token_id": ids[END]}
    text = {**size, **ends, "vocab_size": len(ids), "max_position_embeddings": 77}
    vision = {**size, "image_size": 64, "patch_size": 16}
    write_tokenizer(folder, END)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)).save_pretrained(folder)
    return folder
