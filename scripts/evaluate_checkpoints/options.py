"""Every flag of the evaluation, declared once.

Editing rules: standard library only; a flag here is a parameter `evaluate_…` of the recipes that train, and one of the same name
of `evaluate-lora@1`; a test compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from evaluate_checkpoints.scoring import parse_weights
from lora.flags import Settings, flag

PLACES = "where things are"
PICTURES = "pictures"
JUDGEMENT = "judgement"
NO_CLIP = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationOptions(Settings):
    """The settings of one evaluation."""

    PROGRAM: ClassVar[str] = "Compare the checkpoints of a LoRA's training by the pictures they make, and choose the best."
    ENDS: ClassVar[str] = (
        "0 done, 2 bad input, 69 the hub cannot be reached, 70 the written LoRA is wrong, 71 out of memory,"
        " 74 a file cannot be written, 75 interrupted (run again to go on)"
    )
    GROUPS: ClassVar = (PLACES, PICTURES, JUDGEMENT)

    output: str = flag("output", PLACES, "folder for evaluation/ and final/; usually the training's own", env="RT_OUTPUT")
    trained: str = flag(
        "", PLACES, "folder that the trainer filled, with checkpoints/ and final/training.json (default OUTPUT)", env="RT_TRAINED"
    )
    family: str = flag(
        "", PLACES, "what was trained (default: the only trainer beside this program)", choices=("sd15", "sdxl", "flux")
    )
    base: str = flag("", PLACES, "the base it was trained on (default: as the training was told)", env="RT_BASE")
    dataset: str = flag("", PLACES, "the images it was trained on (default: as the training was told)", env="RT_DATASET")
    cache: str = flag("", PLACES, "folder for encoded prompts (default OUTPUT/cache)", env="RT_CACHE")
    name: str = flag("", PLACES, "name of the LoRA: final/NAME_best.safetensors (default: the training's, else lora)")
    check: bool = flag(False, PLACES, "only see to it that the CLIP model is there, and end")

    prompts: str = flag("", PICTURES, "prompts, separated by | (default: captions spread over the dataset)")
    count: int = flag(4, PICTURES, "how many captions are taken when no prompts are given", low=1, high=64)
    seeds: str = flag("1,2,3", PICTURES, "seeds of the noise, separated by commas: each prompt is drawn with each of them")
    resolution: int = flag(0, PICTURES, "size of the square pictures, px (0: as the training)", low=0, high=4096)
    steps: int = flag(25, PICTURES, "denoising steps of a picture", low=1, high=1000)
    guidance: float = flag(0.0, PICTURES, "guidance scale of a picture (0: as the training's samples)", low=0, high=100)
    threads: int = flag(0, PICTURES, "CPU threads (0: as torch chooses)", low=0, high=1024)

    clip: str = flag(
        "openai/clip-vit-large-patch14",
        JUDGEMENT,
        "CLIP model that judges: a folder or a hub id; none: without what needs one",
        env="RT_CLIP",
    )
    weights: str = flag(
        "", JUDGEMENT, "what counts how much, such as clip_score=2,copying=0; what is not named keeps its usual weight"
    )

    def problems(self) -> list[str]:
        """Everything wrong with the values, each as one sentence that names the flag."""
        found = Settings.problems(self)
        try:
            parse_weights(self.weights)
        except ValueError as error:
            found.append(f"--weights: {error}")
        try:
            if not self.seed_list or min(self.seed_list) < 0:
                raise ValueError
        except ValueError:
            found.append(f"--seeds is {self.seeds!r}, it must be whole numbers from 0 on, separated by commas")
        if (self.name and any(not (c.isalnum() or c in "-_.") for c in self.name)) or self.name.startswith("."):
            found.append(f"--name is {self.name!r}: letters, digits, '-', '_' and '.' only, and no leading '.'")
        return found

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds, each once."""
        return tuple(dict.fromkeys(int(seed) for seed in self.seeds.split(",") if seed.strip()))
