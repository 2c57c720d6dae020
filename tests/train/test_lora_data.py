"""What the trainer says about a dataset before it spends anything, and the order in which it reads it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from PIL import Image

from tests.train.conftest import chosen_options


def options(dataset: Path, **more: object):
    return chosen_options(dataset=dataset, resolution=64, bucket_step=32, **more)


def survey(dataset: Path, **more: object):
    from lora.data import survey

    return survey(options(dataset, **more))


def refusal(dataset: Path, **more: object) -> str:
    from lora.ends import BadInput

    with pytest.raises(BadInput) as caught:
        survey(dataset, **more)
    return str(caught.value)


def add(folder: Path, name: str, image: Image.Image | None = None, caption: str = "a picture") -> Path:
    (image or Image.new("RGB", (96, 64), "teal")).save(folder / name)
    (folder / name).with_suffix(".txt").write_text(caption)
    return folder / name


@pytest.mark.parametrize(
    ("resolution", "step", "low", "high", "expected"),
    [
        (64, 64, 64, 128, [(64, 64)]),
        (64, 32, 32, 128, [(32, 96), (32, 128), (64, 64), (96, 32), (128, 32)]),
        (128, 64, 64, 256, [(64, 192), (64, 256), (128, 128), (192, 64), (256, 64)]),
        (100, 32, 64, 160, [(64, 128), (96, 96), (128, 64)]),
    ],
)
def test_buckets(resolution: int, step: int, low: int, high: int, expected: list[tuple[int, int]]) -> None:
    """Buckets are all sizes in steps between the limits whose area is at most the resolution squared and as large as that allows."""
    from lora.data import buckets

    assert buckets(resolution, step, low, high) == expected


def test_the_real_buckets_stay_within_their_budget() -> None:
    """At 1024² every bucket has sides in steps of 64 within the limits, at most the area, and its transpose beside it."""
    from lora.data import buckets

    found = buckets(1024, 64, 512, 2048)
    assert (1024, 1024) in found and (832, 1216) in found
    assert all(w % 64 == h % 64 == 0 and min(w, h) >= 512 and max(w, h) <= 2048 and w * h <= 1024**2 for w, h in found)
    assert {(h, w) for w, h in found} == set(found)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((100, 100), (64, 64)), ((300, 100), (96, 32)), ((100, 300), (32, 96)), ((4000, 10), (128, 32)), ((161, 114), (64, 64))],
)
def test_an_image_goes_to_the_bucket_of_the_closest_shape(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """The closest shape wins, by ratio, whatever the image's size."""
    from lora.data import buckets, nearest

    assert nearest(*size, buckets(64, 32, 32, 128)) == expected


def test_the_smallest_scale_that_covers_the_bucket_is_cut_at_the_centre(tmp_path: Path) -> None:
    """A 200×100 image for a 64×64 bucket is scaled to 128×64 and loses 32 px on each side; SDXL is told so."""
    from lora.data import Photo
    from sdxl_lora.family import size_conditions

    photo = Photo(tmp_path, "", 200, 100, "", (64, 64))
    assert photo.placement() == ((128, 64), (32, 0))
    assert size_conditions(photo) == [100, 200, 0, 32, 64, 64]


def test_each_epoch_shows_every_image_once_in_batches_of_one_size(tmp_path: Path) -> None:
    """An epoch is a permutation, its batches never mix buckets, the next epoch differs, and asking again gives the same."""
    from lora.data import Order, group

    rng = random.Random(1)
    for number in range(11):
        add(tmp_path, f"{number}.png", Image.new("RGB", rng.choice([(96, 32), (64, 64)]), (number, 0, 0)))
    photos = survey(tmp_path)
    order = Order(photos, 3, seed=7)
    length = len(group(photos, 3, seed=7, epoch=0))
    epochs = [[order.batch(n + e * length) for n in range(length)] for e in range(2)]
    for batches in epochs:
        assert sorted(p.path for batch in batches for p in batch) == [p.path for p in sorted(photos, key=lambda p: p.path)]
        assert all(len({p.bucket for p in batch}) == 1 for batch in batches)
    assert epochs[0] != epochs[1]
    assert [Order(photos, 3, seed=7).batch(n) for n in range(length)] == epochs[0]


def test_unusual_images_can_be_converted_on_request(tmp_path: Path) -> None:
    """With --convert-images CMYK becomes RGB, 16 bits are scaled and not clipped, and transparent parts turn white."""
    from lora.images import load_pixels

    add(tmp_path, "deep.png", Image.new("I;16", (64, 64), 40000))
    add(tmp_path, "glass.png", Image.new("RGBA", (64, 64), (0, 0, 0, 0)))
    add(tmp_path, "press.jpg", Image.new("CMYK", (64, 64), (0, 0, 0, 255)))
    found = {p.path.name: load_pixels(p).getpixel((5, 5)) for p in survey(tmp_path, convert_images=True, min_image=16)}
    assert found == {"deep.png": (156, 156, 156), "glass.png": (255, 255, 255), "press.jpg": (0, 0, 0)}


def test_an_opaque_alpha_channel_and_a_palette_are_ordinary(tmp_path: Path) -> None:
    """Images that lose nothing when turned to RGB need no consent."""
    add(tmp_path, "opaque.png", Image.new("RGBA", (64, 64), (9, 9, 9, 255)))
    add(tmp_path, "palette.png", Image.new("P", (64, 64)))
    add(tmp_path, "grey.png", Image.new("L", (64, 64)))
    assert len(survey(tmp_path)) == 3


def test_the_cameras_rotation_is_applied(tmp_path: Path) -> None:
    """A photograph stored on its side has the size that a viewer shows."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (96, 64)).save(tmp_path / "turned.jpg", exif=exif)
    (photo,) = survey(tmp_path, trigger="x")
    assert (photo.width, photo.height) == (64, 96)


def test_missing_captions_are_named_unless_allowed(tmp_path: Path) -> None:
    """Images without a caption, or with an empty one, are named; a trigger or a flag makes them acceptable.

    A trigger that a caption has as words of its own is not put there twice.
    """
    add(tmp_path, "told.png", caption="a thing")
    add(tmp_path, "blank.png", caption=" \n")
    add(tmp_path, "bare.png").with_suffix(".txt").unlink()
    message = refusal(tmp_path)
    assert "bare.png" in message and "blank.png" in message and "told.png" not in message
    assert [p.caption for p in survey(tmp_path, allow_missing_captions=True)] == ["", "", "a thing"]
    assert [p.caption for p in survey(tmp_path, trigger="sks")] == ["sks", "sks", "sks, a thing"]
    assert [p.caption for p in survey(tmp_path, trigger="thin")] == ["thin", "thin", "thin, a thing"]
    assert [p.caption for p in survey(tmp_path, trigger="a thing")][2] == "a thing"


def test_folders_say_how_often_images_count(tmp_path: Path) -> None:
    """In 3_red_fox an image is shown thrice an epoch, and without a caption it is called as its folder is.

    A year is no such number, what the dataset itself is called says nothing, and images that would never be shown are named.
    """
    from lora.data import group

    dataset = tmp_path / "5_all"
    for folder in ("3_red_fox", "2023_plain"):
        (dataset / folder).mkdir(parents=True)
        add(dataset / folder, "one.png", Image.new("RGB", (64, 64), (folder == "2023_plain" and "red") or "blue"))
    (dataset / "3_red_fox" / "one.txt").unlink()
    add(dataset, "one.png")
    photos = survey(dataset)
    assert [(p.repeats, p.caption) for p in photos] == [(1, "a picture"), (3, "red fox"), (1, "a picture")]
    assert sum(len(batch) for batch in group(photos, 2, seed=1, epoch=0)) == 5
    (dataset / "2023_plain").rename(dataset / "0_plain")
    assert "would never be shown" in (message := refusal(dataset)) and "0_plain/one.png" in message and "red_fox" not in message


def test_captions_come_from_metadata(tmp_path: Path) -> None:
    """metadata.jsonl gives captions to the images in its folder; a text file beside an image has precedence."""
    add(tmp_path, "one.png").with_suffix(".txt").unlink()
    add(tmp_path, "two.png", caption="own words")
    lines = [{"file_name": "one.png", "text": "from the  list"}, {"file_name": "two.png", "caption": "from the list"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert [p.caption for p in survey(tmp_path)] == ["from the list", "own words"]


@pytest.mark.parametrize("suffix", [".txt", ".TXT", ".caption"])
def test_captions_lie_beside_images(suffix: str, tmp_path: Path) -> None:
    """In files that end as other trainers and other systems end them."""
    text = add(tmp_path, "one.png", caption="own words").with_suffix(".txt")
    text.rename(text.with_suffix(suffix))
    assert [p.caption for p in survey(tmp_path)] == ["own words"]


def test_tags_are_shuffled_behind_those_that_are_kept() -> None:
    """Eight orders follow from the caption and the seed; the first tags stay, none is lost; without the flag there is one."""
    from lora.captions import orders

    caption = "sks, cat, wall, sun, grass"
    chosen = chosen_options(shuffle_tags=True, keep_tags=2)
    found = orders(caption, chosen)
    assert len(found) == 8 and len(set(found)) > 1 and found == orders(caption, chosen)
    assert all(text.startswith("sks, cat, ") and sorted(text.split(", ")) == sorted(caption.split(", ")) for text in found)
    assert orders(caption, chosen_options()) == [caption] and orders("sks, cat, wall", chosen) == ["sks, cat, wall"]


def test_an_image_is_seen_in_every_resolution_that_it_can_fill(tmp_path: Path) -> None:
    """Further resolutions take only images at least that large; an image is held out in all of them."""
    from lora.data import split

    add(tmp_path, "large.png", Image.new("RGB", (160, 160), "red"))
    add(tmp_path, "small.png", Image.new("RGB", (70, 70), "blue"))
    photos = survey(tmp_path, more_resolutions="96,128", trigger="x")
    assert [(p.path.stem, p.bucket) for p in photos] == [
        ("large", (64, 64)), ("large", (96, 96)), ("large", (128, 128)), ("small", (64, 64)),
    ]  # fmt: skip
    learned, watched = split(photos, 0.5, seed=0)
    assert not {p.path for p in learned} & {p.path for p in watched}


def test_prior_images_take_turns(tmp_path: Path) -> None:
    """Each epoch has as many prior images as others, without the trigger, the next ones in the next epoch; none is validated on."""
    from lora.data import Order, of_epoch, split

    for folder, count in (("own", 2), ("prior", 3)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            add(tmp_path / folder, f"{folder}{number}.png", Image.new("RGB", (64, 64), (number, 0, 0)))
    photos = survey(tmp_path / "own", prior=tmp_path / "prior", trigger="sks")
    assert [p.caption for p in photos if p.prior] == ["a picture"] * 3 and photos[0].caption == "sks, a picture"
    shown = [[p.path.stem for p in of_epoch(photos, epoch) if p.prior] for epoch in range(3)]
    assert shown == [["prior0", "prior1"], ["prior2", "prior0"], ["prior1", "prior2"]]
    order = Order(photos, 4, seed=1)
    assert [sorted(p.path.stem for p in order.batch(n))[2:] for n in range(3)] == [sorted(names) for names in shown]
    assert not any(p.prior for p in split(photos, 0.5, seed=1)[1]) and not any(p.prior for p in split(photos, 0, seed=1)[1])


def test_masks_come_from_opacity_or_from_files(tmp_path: Path) -> None:
    """White or opaque places count; a mask of another shape, a broken or an all-black one is named."""
    from lora.images import load_mask

    half = Image.new("RGBA", (64, 64), (9, 9, 9, 255))
    half.paste((9, 9, 9, 0), (0, 0, 32, 64))
    add(tmp_path, "half.png", half)
    add(tmp_path, "whole.png")
    (photo, whole) = survey(tmp_path, masks="alpha")
    mask = load_mask(photo, "alpha")
    assert photo.mask == "alpha" and whole.mask == "" and (mask.getpixel((5, 5)), mask.getpixel((60, 5))) == (0, 255)
    (tmp_path / "half.png").unlink()
    Image.new("L", (96, 64), 255).save(tmp_path / "whole.mask.png")
    (whole,) = survey(tmp_path, masks="files", allow_missing_captions=True)
    assert len(whole.mask) == 64
    for mask, expected in ((Image.new("L", (96, 64)), "black everywhere"), (Image.new("L", (64, 64), 255), "another shape")):
        mask.save(tmp_path / "whole.mask.png")
        assert expected in refusal(tmp_path, masks="files")
    (tmp_path / "whole.mask.png").write_text("no picture")
    assert "whole.png: its mask whole.mask.png cannot be read" in refusal(tmp_path, masks="files")


def test_the_report_tells_what_the_dataset_amounts_to(tmp_path: Path) -> None:
    """Images, views, buckets, epochs, captions and tags are told before anything is spent."""
    from lora.report import report

    (tmp_path / "2_cats").mkdir()
    add(tmp_path / "2_cats", "one.png", Image.new("RGB", (64, 64), "red"), "a cat, grass")
    add(tmp_path, "two.png", Image.new("RGB", (96, 33), "red"), "a dog, grass")
    chosen = options(tmp_path, steps=12)
    from lora.data import survey

    assert report(chosen, survey(chosen)) == [
        "dataset: 2 images, 3 views an epoch in 2 buckets (64×64: 2, 96×32: 1)",
        "dataset: about 3 steps an epoch, 4.0 epochs in 12 steps",
        "dataset: images count as often as their folder says in 2_cats",
        "dataset: captions of 3 to 3 words, 2 different ones",
        "dataset: frequent tags: grass 2, a cat 1, a dog 1",
    ]
    assert report(chosen, survey(chosen), ranks=3)[1] == "dataset: about 1 steps an epoch, 12.0 epochs in 12 steps"
    chosen = options(tmp_path, steps=12, prior_prompt="a bird", prior_images=7)
    assert report(chosen, survey(chosen))[1:3] == [
        "dataset: about 6 steps an epoch, 2.0 epochs in 12 steps",
        "dataset: 7 prior images of 'a bird', made by the base itself, of which 3 are shown an epoch with weight 1",
    ]
