"""The flags are a contract with the recipe and with people's scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.train.conftest import chosen_options, tool

FLAGS = """
base dataset output metrics cache name smoke
resolution more_resolutions bucket_step bucket_min bucket_max min_image convert_images trigger allow_missing_captions
shuffle_tags keep_tags flip masks mask_background prior prior_prompt prior_images prior_weight caption_dropout
network targets rank alpha dropout text_lr text_rank text_alpha conv_rank conv_alpha
steps batch_size grad_accumulation optimizer lr lr_schedule lr_cycles warmup weight_decay clip ema seed spike rollbacks plateau
patience min_snr_gamma debiased noise_offset
precision quantize gradient_checkpointing vram compile ranks threads
log_every val_every val_fraction sample_every sample_count sample_prompts sample_steps sample_guidance tensorboard
checkpoint_every keep_checkpoints export_every
"""


def test_the_flags_are_these() -> None:
    """No flag disappears or is renamed without somebody deciding so."""
    from lora.flags import flags

    assert list(flags(tool("sdxl").options)) == FLAGS.split()


def test_a_configuration_file_sets_options_and_flags_override_it(tmp_path: Path) -> None:
    """Names in the file are those of the flags, with - or _; a flag beats the file, the file beats the environment."""
    from lora.flags import parse

    file = tmp_path / "options.json"
    file.write_text(json.dumps({"rank": 4, "grad-accumulation": 2, "convert_images": True, "lr": 0.002, "output": "from-file"}))
    options = parse(["--config", str(file), "--rank", "8"], {"RT_OUTPUT": "from-env", "RT_BASE": "model"}, tool("sdxl").options)
    assert (
        not options.smoke
        and options.rank == 8
        and options.grad_accumulation == 2
        and options.convert_images
        and options.lr == 0.002
    )
    assert (options.output, options.base) == ("from-file", "model")


def test_the_strength_follows_the_rank_unless_it_is_given() -> None:
    """A larger rank does not weaken the update: alpha is half the rank, for FLUX the rank."""
    found = [chosen_options(family, rank=32).strength for family in ("sd15", "sdxl", "flux")]
    assert found == [16.0, 16.0, 32.0] and chosen_options(rank=32, alpha=2.0).strength == 2.0


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"rang": 4}', "--rang=4"),
        ('{"rank": "many"}', "--rank"),
        ("[1]", "must be a JSON object"),
        ("{", "cannot read the configuration"),
    ],
)
def test_a_wrong_configuration_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, expected: str
) -> None:
    """An unknown name, a wrong type or broken JSON ends with code 2 and says what is wrong."""
    from lora.flags import parse

    file = tmp_path / "options.json"
    file.write_text(content)
    with pytest.raises(SystemExit) as caught:
        parse(["--config", str(file)], {}, tool("sdxl").options)
    assert caught.value.code == 2 and expected in capsys.readouterr().err


def test_all_values_out_of_range_are_listed_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Each wrong value gets a line that names the flag, the value and the limit."""
    from lora.flags import parse

    with pytest.raises(SystemExit) as caught:
        parse(["--rank", "0", "--lr", "nan", "--bucket-step", "48", "--name", "../x"], {}, tool("sdxl").options)
    message = capsys.readouterr().err
    assert caught.value.code == 2 and all(
        flag in message for flag in ("--rank is 0", "--lr is nan", "--bucket-step is 48", "--name is")
    )
