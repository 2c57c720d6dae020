"""The parts of `make demo-visible`, at a few steps each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.train.conftest import PHOTOGRAPHS, ROOT, Train, chosen_options


@pytest.fixture
def settings() -> dict[str, str]:
    """What the Makefile sets in the training of `make demo-visible`."""
    recipe = re.search(r"^demo-visible:.*?(?=^\S)", (ROOT / "Makefile").read_text(), re.MULTILINE | re.DOTALL)
    assert recipe
    values = dict(re.findall(r"--set (\w+)=([\w.]+)", recipe[0]))
    return {name: value for name, value in values.items() if name not in ("preset", "gpus", "python")}


def test_the_base_is_shown_photographs_as_the_trainer_cuts_them(settings: dict[str, str]) -> None:
    """At the Makefile's settings the trainer gives each photograph the size and cut that the base learns it in."""
    from lora.data import survey

    from demo.photographs import read

    by_trainer = {photo.path.stem: photo for photo in survey(chosen_options(dataset=PHOTOGRAPHS, **settings))}
    by_demo = {photograph.name: photograph for photograph in read()}
    assert by_trainer.keys() == by_demo.keys() and len(by_demo) == 32
    assert sum(photograph.unknown for photograph in by_demo.values()) == 24
    for name, photograph in by_demo.items():
        left, top = by_trainer[name].placement()[1]
        assert (photograph.image.size, photograph.corner) == (by_trainer[name].bucket, (top, left))


def test_an_interrupted_lesson_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    """A lesson goes on at the state it kept, bit for bit, and not at that of a lesson of another length."""
    import torch

    from demo.lesson import Lesson, learn

    def weights(kept: str, steps: int, stop: int = -1) -> torch.Tensor:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1)
        calls = iter(range(steps))

        def loss(draw: torch.Generator) -> torch.Tensor:
            if next(calls) == stop:
                raise KeyboardInterrupt
            return model(torch.randn(8, 4, generator=draw)).square().mean()

        learn(model, Lesson("line", steps, 0.1, tmp_path / kept, every=2), loss)
        return model.weight.detach()

    whole = weights("whole", 6)
    with pytest.raises(KeyboardInterrupt):
        weights("cut", 6, stop=5)
    assert torch.equal(weights("cut", 6), whole)
    other = weights("other", 4)
    assert not torch.equal(other, whole) and torch.equal(weights("cut", 4), other)


def test_a_base_is_taught_and_a_lora_on_it_is_shown(
    train: Train, settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer takes the base that was made; what it wrote is drawn beside the base's images and the photographs."""
    from PIL import Image

    from demo import base, picture
    from demo.photographs import LONG, SHORT, read

    monkeypatch.setattr(picture, "STEPS", 1)
    monkeypatch.setattr(picture, "ROWS", ("cat00", "black-canyon"))
    few = [photograph for photograph in read() if photograph.name in ("acanthus-mollis", "black-canyon", "cat00")]
    made = tmp_path / "base"
    base.make(made, few, base.Steps(1, 1, 1))
    base.make(made, [], base.Steps())  # it is there
    assert not made.with_name("base.part").exists()

    small = {**settings, "rank": 2, "steps": 2, "val_every": 0, "checkpoint_every": 1, "batch_size": 1, "warmup": 0}
    result = train("sdxl", base=made, **small)
    said = picture.make(made, result, tmp_path / "demo.jpg")
    assert re.search(r"Mean difference to the photographs: \d+ -> \d+ of 255 where there is a cat, \d+ -> \d+ where", said)
    with Image.open(tmp_path / "demo.jpg") as shown:
        assert shown.width > 4 * picture.ZOOM * LONG and shown.height > len(picture.ROWS) * picture.ZOOM * SHORT
