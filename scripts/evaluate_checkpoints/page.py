"""report.html: the report for people, in one file; small pictures are inside it, and each leads to the full one beside it.

Editing rules: everything comes from report.json's content; text from outside is escaped; no script, nothing is fetched.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lora.images import open_image, quiet, to_rgb
from PIL import Image

STYLES = Path(__file__).with_name("page.css")
SMALL = 256
Report = Mapping[str, Any]


def number(value: float | None) -> str:
    """A measurement as people read it."""
    return "–" if value is None else f"{value:.4g}"


def small(image: Image.Image) -> str:
    """A picture as part of the page."""
    image = image.convert("RGB")
    image.thumbnail((SMALL, SMALL))
    content = io.BytesIO()
    image.save(content, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def table(head: Sequence[str], rows: Sequence[Sequence[str]], marked: int | None = None) -> str:
    """A table of ready HTML; one row may be marked."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(
        f"<tr{' class=best' if index == marked else ''}>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>"
        for index, row in enumerate(rows)
    )
    return f"<div class=wide><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def bar(points: float | None) -> str:
    """Points as a bar."""
    return "" if points is None else f"<i class=bar><b style=width:{100 * points:.0f}%></b></i>"


def summary(report: Report) -> str:
    """The result first."""
    best, base = report["best"], report["base"]
    files = ", ".join(f"<code>{escape(file)}</code>" for file in best["files"])
    last = " It is the last checkpoint." if best["is_last"] else ""
    return (
        f"<h1>{escape(report['name'])}: step {best['step']} is the best</h1>"
        f"<p class=lead>{escape(best['why'][0].upper() + best['why'][1:])}.{last}</p>"
        f"<p>Its LoRA: {files}. Trained on {escape(base['name'])} ({escape(base['family'])}).</p>"
    )


def column(report: Report, name: str) -> str:
    """The head of a metric's column."""
    metric, share = report["metrics"][name], report["weights"].get(name)
    counts = "not counted" if share is None else f"counts {100 * share:.0f} %"
    title = f"<span title='{escape(metric['about'])}'>{escape(metric['title'])}</span>"
    return f"{title}<small>{metric['better']} is better<br>{counts}</small>"


def scores(report: Report) -> str:
    """What was measured, and what it counted."""
    names, rows = list(report["metrics"]), []
    for entry in report["checkpoints"]:
        cells = [f"{number(entry['values'][name])}{bar(entry['points'].get(name))}" for name in names]
        rows.append([str(entry["step"]), f"<strong>{entry['score']:.3f}</strong>{bar(entry['score'])}", *cells])
    head = ["step", "score", *(column(report, name) for name in names)]
    note = (
        "A bar shows points: full for the best checkpoint, less with the distance from it; equal values are all full."
        " A score is their weighted mean."
    )
    return f"<h2>Scores</h2>{table(head, rows, place_of_best(report))}<p class=note>{note}</p>{absent(report)}"


def place_of_best(report: Report) -> int:
    """Which row is the best checkpoint's."""
    return [entry["step"] for entry in report["checkpoints"]].index(report["best"]["step"])


def absent(report: Report) -> str:
    """What could not be measured or read, and why."""
    titles = {name: metric["title"] for name, metric in report["metrics"].items()} | {"fid": "FID"}
    lines = [f"<li>{escape(titles[name])} was not measured: {escape(why)}.</li>" for name, why in report["missing"].items()]
    lines += [f"<li>A checkpoint was left out: {escape(text)}.</li>" for text in report["damaged"]]
    return f"<ul class=note>{''.join(lines)}</ul>" if lines else ""


def drawings(report: Report, folder: Path) -> str:
    """All pictures, a row for each checkpoint."""
    head = [f"<span class=prompt>{escape(prompt) or '(empty prompt)'}</span>" for prompt in report["prompts"]]
    rows = []
    for entry in report["checkpoints"]:
        cells = []
        for prompt in range(len(report["prompts"])):
            own = [image for image in entry["images"] if image["prompt"] == prompt]
            cells.append(f"<div class=seeds>{''.join(figure(image, folder) for image in own)}</div>")
        rows.append([f"<strong>{entry['step']}</strong><small>{entry['score']:.3f}</small>", *cells])
    seeds = ", ".join(str(seed) for seed in report["seeds"])
    note = f"Seeds {seeds} from left to right; the same noise in every row. A picture leads to its full size."
    if any(image.get("copied") for entry in report["checkpoints"] for image in entry["images"]):
        note += " An orange frame: nearly a training image."
    return f"<h2>Pictures</h2><p class=note>{note}</p>{table(['step', *head], rows, place_of_best(report))}"


def figure(image: Report, folder: Path) -> str:
    """One picture with what was measured of it."""
    facts = [f"seed {image['seed']}", f"sharpness {number(image['sharpness'])}"]
    if "clip_score" in image:
        near = image["nearest"]
        facts += [f"CLIP score {number(image['clip_score'])}", f"nearest {near['image']} {near['similarity']:.3f}"]
    with Image.open(folder / image["file"]) as opened:
        source = small(opened)
    mark = " class=copied" if image.get("copied") else ""
    return f"<a href='{escape(image['file'])}'><img{mark} src='{source}' title='{escape(', '.join(facts))}' alt='{escape(facts[0])}'></a>"


def copies(report: Report, folder: Path, dataset: Path) -> str:
    """Pictures of the best checkpoint that are nearly a training image, beside it."""
    (entry,) = (entry for entry in report["checkpoints"] if entry["step"] == report["best"]["step"])
    found = [image for image in entry["images"] if image.get("copied")]
    if not found:
        return ""
    pairs = []
    for image in found:
        near = image["nearest"]
        with quiet():
            original = small(to_rgb(open_image(dataset / near["image"])[0]))
        pairs.append(
            f"<figure><div class=seeds>{figure(image, folder)}<img src='{original}' alt='training image'></div>"
            f"<figcaption>{near['similarity']:.3f} like {escape(near['image'])}</figcaption></figure>"
        )
    note = (
        f"Pictures of step {entry['step']} whose nearest training image has a cosine above {report['copied_above']}:"
        " learnt by heart, or too much alike for this CLIP."
    )
    return f"<h2>Nearly training images</h2><p class=note>{note}</p><div class=pairs>{''.join(pairs)}</div>"


def three(sharpness: Mapping[str, float]) -> str:
    """A distribution in three numbers."""
    return " / ".join(number(sharpness[share]) for share in ("p10", "p50", "p90"))


def settings(report: Report) -> str:
    """How the pictures were made and judged."""
    own, chosen = report["training_images"], report["settings"]
    rows = [
        ["pictures", f"{chosen['resolution']} px, {chosen['steps']} steps, guidance {number(chosen['guidance'])}"],
        ["CLIP", escape(chosen["clip"])],
        ["training images", str(own["count"])],
        ["their sharpness", f"{three(own['sharpness'])} <small>at the 10th, 50th and 90th of 100</small>"],
        *([f"sharpness at step {entry['step']}", three(entry["sharpness"])] for entry in report["checkpoints"]),
    ]
    meanings = ""
    for metric in report["metrics"].values():
        worth = f"a difference of {number(metric['matters'])} is worth all points"
        meanings += f"<dt>{escape(metric['title'])}</dt><dd>{escape(metric['about'])}; {worth}</dd>"
    return f"<h2>How it was compared</h2>{table(['', ''], rows)}<dl>{meanings}</dl>"


def render(report: Report, folder: Path, dataset: Path) -> str:
    """The page; `folder` holds images/, `dataset` the training images."""
    parts = [summary(report), scores(report), drawings(report, folder), copies(report, folder, dataset), settings(report)]
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{escape(report['name'])}: checkpoints</title>"
    return f"<!doctype html><html lang=en><head>{head}<style>{STYLES.read_text()}</style></head><body>{''.join(parts)}</body></html>\n"
