"""Prior images that the base makes itself, before anything is learnt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.train.conftest import Train, chosen_options
from tests.train.test_lora_families import PROMPT, apart, picture, pipeline_of

PRIOR = {"prior_prompt": PROMPT, "prior_images": 3, "sample_steps": 2, "sample_guidance": 2.0, "batch_size": 2}


def pictures(cache: Path) -> list[Path]:
    return sorted(cache.glob("prior/*/*.png"))


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_the_base_makes_the_prior_images_once(
    family: str, train: Train, bases: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are what diffusers makes of the prompt with the base alone; a stop leaves those that are finished, and none is made twice."""
    import numpy as np
    from lora.ends import Interrupted

    cache, output = tmp_path / "cache", tmp_path / "output"

    def stop() -> None:
        if len(pictures(cache)) == 2:
            raise Interrupted("enough")

    options = {**PRIOR, "text_lr": 1e-3, "cache": cache, "output": output, "steps": 3}
    with pytest.raises(Interrupted):
        train(family, stop, **options)
    made = {path.name: path.stat().st_mtime_ns for path in pictures(cache)}
    assert list(made) == ["00000.png", "00001.png"] and not output.exists()
    with Image.open(pictures(cache)[0]) as image:
        assert apart(picture(family, pipeline_of(family, bases(family)), stream=5), np.asarray(image).astype(int)) <= 1
    capsys.readouterr()
    train(family, **options)
    said = capsys.readouterr().out
    assert "made 1 prior images" in said and "encoded 11 images" in said  # eight of the dataset's
    assert {path.name: path.stat().st_mtime_ns for path in pictures(cache)}.items() >= made.items()
    assert [path.with_suffix(".txt").read_text() for path in pictures(cache)] == [PROMPT + "\n"] * 3
    train(family, **options)
    assert "made" not in capsys.readouterr().out


def test_a_training_goes_on_with_prior_images_of_another_machine(train: Train, tmp_path: Path) -> None:
    """A checkpoint knows them by prompt, number and settings, not by their bytes; other settings are named and refused."""
    from lora.ends import BadInput

    options = {**PRIOR, "targets": "attention", "output": tmp_path / "output"}
    train("sd15", **options, cache=tmp_path / "here", steps=1)
    first, *others = pictures(tmp_path / "here")
    there = tmp_path / "there" / first.relative_to(tmp_path / "here").parent
    there.mkdir(parents=True)
    for path in (first, *others):
        with Image.open(path) as image:
            image.point(lambda level: max(level, 1)).save(there / path.name)
        (there / path.name).with_suffix(".txt").write_text(PROMPT)
    (there / others[-1].name).write_bytes(b"")  # cut short by a crash: made again
    train("sd15", **options, cache=tmp_path / "there", steps=2)
    assert (tmp_path / "output" / "checkpoints" / "step-000002").is_dir()
    assert (there / others[-1].name).read_bytes() == others[-1].read_bytes()
    with pytest.raises(BadInput) as caught:
        train("sd15", **{**options, "sample_steps": 1, "prior_prompt": "a dog", "prior_images": 1}, steps=3)
    lines = {line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]}
    assert lines == {"prior_images", "prior_prompt", "sample_steps"}


def test_prior_images_are_given_or_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of them and a prompt for them at once is a mistake."""
    with pytest.raises(SystemExit) as caught:
        chosen_options(prior=tmp_path, prior_prompt=PROMPT)
    assert caught.value.code == 2 and "give one of the two" in capsys.readouterr().err
