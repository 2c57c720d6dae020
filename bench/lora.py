"""How fast the LoRA trainers are beside diffusers' own scripts, how much GPU memory they take, and how soon they begin.

    python -m bench.lora --diffusers PATH            # on a GPU; PATH is a checkout of diffusers, any version the libraries go with
    python -m bench.lora --only vram --vram 8 24     # ours alone: whether each preset fits into so many GiB
    python -m bench.lora --size tiny --diffusers PATH     # on a CPU: shows that everything works, no figures to compare
    python -m bench.lora --size deep --only operations    # on a CPU: what a step of the real depth asks torch to compute

Bases have the published sizes and random weights; they and the made-up images are kept in --folder (7 GB for SDXL, 34 GB for FLUX). Both
programs run in processes of their own with the same settings, one after the other, and are looked at from outside (lora_probe.py). The
time of a step is the mean of --steps after --warmup; the first run of ours fills its cache and counts nowhere.

Rules for editing: needs the training libraries and nothing of remote_trainer, so that a bare GPU machine can run it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench import lora_programs as programs
from bench.lora_bases import GIGABYTES, make_images
from bench.lora_programs import Look, Places, Result, Setting

PARTS = ("speed", "start", "vram", "operations")
TARGETS = {"sdxl": 1.3, "flux": 1.2}
START_S = 15
PUBLISHED = """\
Published elsewhere, by other programs:
SDXL LoKr 1024², batch 1, bf16, H100 (SimpleTuner): 0.606 s a step, 13.0 GiB; with checkpointing 1.080 s, 6.5 GiB
FLUX rank 128, 1024², bf16, A6000 (kohya): 8.25 s a step, 44 GB; 512 × 768, fp8 base, H100 (diffusers): 1.7 s a step, 36.6 GB"""
GPU = """\
import torch
card = torch.cuda.get_device_properties(0)
print(card.name, f"{card.total_memory / 2**30:.0f} GiB, torch", torch.__version__)"""


@dataclass(frozen=True, slots=True)
class Bench:
    """One call of this program."""

    given: argparse.Namespace
    family: str

    @property
    def places(self) -> Places:
        folder = self.given.folder
        work = folder / f"work-{self.given.size}"
        return Places(folder / f"{self.family}-{self.given.size}", folder / f"images-{self.given.size}", work)

    @property
    def setting(self) -> Setting:
        real = self.given.size == "real"
        return Setting(self.family, resolution=1024 if real else 64, rank=self.given.rank, extra=tuple(self.given.ours))

    def prepare(self) -> None:
        """Make what all runs need, and fill our cache."""
        places = self.places
        places.work.mkdir(parents=True, exist_ok=True)
        make_images(places.images, 1280 if self.given.size == "real" else 96)
        if not places.base.is_dir():
            needed = GIGABYTES[self.family] * 1.1e9 if self.given.size == "real" else 1e8
            if (free := shutil.disk_usage(self.given.folder).free) < needed:
                sys.exit(f"{self.given.folder} has {free / 1e9:.0f} GB free, the base needs {needed / 1e9:.0f}; pass --folder")
            print(f"making {places.base}", flush=True)
            command = [self.given.python, "-m", "bench.lora_bases", self.family, self.given.size, str(places.base)]
            subprocess.run(command, check=True)
        self.ours(self.setting, Look(warmup=1, steps=0))

    def ours(self, setting: Setting, look: Look) -> Result:
        shutil.rmtree(self.places.work / f"ours-{setting.label}", ignore_errors=True)
        return self.run("ours", programs.ours(setting, self.places), setting, look)

    def theirs(self, setting: Setting, look: Look) -> Result:
        return self.run("diffusers", programs.theirs(setting, self.places, self.given.diffusers), setting, look)

    def run(self, name: str, command: Sequence[str], setting: Setting, look: Look) -> Result:
        """One run, with a line that says how it went."""
        print(f"{name} {setting.label} …", end=" ", file=sys.stderr, flush=True)
        result = programs.look(self.given.python, name, command, setting, look)
        print(f"{result.step_s:.3f} s a step" if result.measured and look.steps else result.end, file=sys.stderr, flush=True)
        return result

    def look(self, **more: object) -> Look:
        return replace(Look(self.given.warmup, self.given.steps), **more)  # type: ignore[arg-type]

    def speed(self) -> Iterator[Result]:
        """Both programs, with batches that grow until one does not fit, without and with checkpointing."""
        for checkpointing in self.given.checkpointing:
            for run in (self.ours, self.theirs) if self.given.diffusers else (self.ours,):
                for batch in self.given.batches:
                    setting = replace(self.setting, batch=batch, checkpointing=checkpointing == "on")
                    yield (result := run(setting, self.look()))
                    if not result.measured:
                        break

    def start(self) -> Iterator[Result]:
        """Ours until its first step; the cache is warm since `prepare`."""
        yield self.ours(self.setting, self.look(warmup=1, steps=0))

    def vram(self) -> Iterator[Result]:
        """Ours with what it chooses by itself for each amount of memory."""
        for size in self.given.vram:
            yield self.ours(replace(self.setting, vram=size), self.look())

    def operations(self) -> Iterator[Result]:
        """What one step computes, for both."""
        look = self.look(warmup=1, steps=1, count=True)
        for run in (self.ours, self.theirs) if self.given.diffusers else (self.ours,):
            yield run(self.setting, look)


def speed_table(results: Sequence[Result]) -> list[str]:
    """One line for each setting, then each program's best batch."""
    lines = [
        "| base | batch | checkpointing | images/s | diffusers' images/s | ratio | target | s/step | diffusers' | peak GiB | diffusers' |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for family, checkpointing in dict.fromkeys((r.setting.family, r.setting.checkpointing) for r in results):
        some = [r for r in results if (r.setting.family, r.setting.checkpointing) == (family, checkpointing)]
        sides = [[r for r in some if r.program == name] for name in ("ours", "diffusers")]
        for batch in sorted({r.setting.batch for r in some}):
            pair = [next((r for r in side if r.setting.batch == batch), None) for side in sides]
            lines.append(speed_line(family, str(batch), checkpointing, pair))
        best = [max((r for r in side if r.measured), key=lambda r: r.images_per_s, default=None) for side in sides]
        batches = " and ".join(str(r.setting.batch) for r in best if r)
        lines.append(speed_line(family, f"best: {batches}", checkpointing, best))
    return lines


def speed_line(family: str, batch: str, checkpointing: bool, pair: Sequence[Result | None]) -> str:
    """One line: ours and theirs."""
    cells = [family, batch, "on" if checkpointing else "off", *(shown(r, "images_per_s", 3) for r in pair)]
    first, second = (r.images_per_s if r else 0.0 for r in pair)
    cells += [f"{first / second:.2f}" if first and second else "–", f"{TARGETS[family]}"]
    cells += [shown(r, name, digits) for name, digits in (("step_s", 3), ("peak_gib", 1)) for r in pair]
    return f"| {' | '.join(cells)} |"


def shown(result: Result | None, name: str, digits: int) -> str:
    """A figure of a result, or why there is none."""
    if result is None:
        return "–"
    return f"{getattr(result, name):.{digits}f}" if result.measured else result.end[:60]


def start_table(results: Sequence[Result]) -> list[str]:
    """From the start of our program to its first step, caches warm."""
    lines = [f"| base | seconds to the end of the first step (target {START_S}) | where |", "|---|---|---|"]
    for r in results:
        where = ", ".join(f"{place} {seconds:.1f}" for place, seconds in r.start.items() if seconds >= 0.05)
        lines.append(f"| {r.setting.family} | {f'{r.first_step_s:.1f}' if r.measured else r.end} | {where} |")
    return lines


def vram_table(results: Sequence[Result]) -> list[str]:
    """Whether each preset fits, with all that lies on the GPU."""
    lines = [
        "| base | GPU memory GiB | fits | peak of the start GiB | peak of steps GiB | reserved | beside it | images/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        fits = r.end[:60] if not r.measured else "yes" if r.reserved_gib + r.outside_gib <= r.setting.vram else "no"
        memory = " | ".join(f"{gib:.1f}" for gib in (r.start_peak_gib, r.peak_gib, r.reserved_gib, r.outside_gib))
        lines.append(f"| {r.setting.family} | {r.setting.vram:g} | {fits} | {memory} | {r.images_per_s:.3f} |")
    return lines


def operations_table(results: Sequence[Result]) -> list[str]:
    """How many operations a step has, and which there are most of."""
    lines = ["| base | program | forward | backward | optimiser | most |", "|---|---|---|---|---|---|"]
    for r in (r for r in results if r.measured):
        sums = [f"{sum(r.operations.get(phase, {}).values()):.0f}" for phase in ("forward", "backward", "optimiser")]
        names: dict[str, float] = {}
        for phase in ("forward", "backward"):
            for name, count in r.operations.get(phase, {}).items():
                names[name] = names.get(name, 0) + count
        most = ", ".join(f"{name} {count:.0f}" for name, count in sorted(names.items(), key=lambda item: -item[1])[:8])
        lines.append(f"| {r.setting.family} | {r.program} | {' | '.join(sums)} | {most} |")
    return lines


def machine(python: str, size: str) -> str:
    """What it runs on; ends the program if a GPU is needed and there is none."""
    found = subprocess.run([python, "-c", GPU], capture_output=True, text=True)
    if size == "real" and found.returncode:
        why = found.stderr.strip().splitlines()[-1:] or ["no GPU"]
        sys.exit(f"bases of the real size need a GPU that torch can use ({why[0]}); --size tiny tries everything on a CPU")
    shown = found.stdout.strip() if not found.returncode else f"no GPU, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    return f"{shown}, {platform.platform()}, Python {platform.python_version()}"


def measure(given: argparse.Namespace) -> dict[str, list[Result]]:
    """All runs that were asked for, by part."""
    results: dict[str, list[Result]] = {part: [] for part in given.only}
    for family in given.families:
        bench = Bench(given, family)
        bench.prepare()
        for part in given.only:
            results[part] += getattr(bench, part)()
    return results


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=sorted(TARGETS), default=["sdxl", "flux"])
    parser.add_argument("--size", choices=["real", "deep", "tiny"], default="real")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=["speed", "start", "vram"])
    parser.add_argument("--diffusers", type=Path, help="checkout of diffusers; without it, ours alone")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8], help="in this order, until one does not fit")
    parser.add_argument("--checkpointing", nargs="+", choices=["off", "on"], default=["off", "on"])
    parser.add_argument("--vram", type=float, nargs="+", default=[8, 12, 16, 24, 48, 80], help="GiB")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--warmup", type=int, default=5, help="steps that are not measured")
    parser.add_argument("--steps", type=int, default=20, help="steps that are")
    parser.add_argument("--python", default=sys.executable, help="runs both programs")
    parser.add_argument("--ours", nargs="+", default=[], metavar="FLAG=VALUE", help="further flags of ours, without --")
    parser.add_argument("--folder", type=Path, default=Path("bench-lora"), help="bases, images, caches, logs")
    parser.add_argument("--json", type=Path, help="default FOLDER/results.json")
    given = parser.parse_args()
    given.folder, given.ours = given.folder.resolve(), [f"--{flag}" for flag in given.ours]
    return given


def main() -> int:
    """Measure, print the tables and write the JSON; returns how many runs went wrong otherwise than by running out of memory."""
    given = parse()
    given.folder.mkdir(parents=True, exist_ok=True)
    about = machine(given.python, given.size)
    print(about, flush=True)
    results = measure(given)
    tables = {"speed": speed_table, "start": start_table, "vram": vram_table, "operations": operations_table}
    for part, found in results.items():
        print("\n".join(["", *tables[part](found)]))
    print(f"\n{PUBLISHED}")
    whole = {part: [result.to_json() for result in found] for part, found in results.items()}
    text = json.dumps({"machine": about, "size": given.size, "results": whole}, indent=1)
    (given.json or given.folder / "results.json").write_text(text + "\n")
    return sum(result.end not in ("measured", "out of memory") for found in results.values() for result in found)


if __name__ == "__main__":
    sys.exit(main())
