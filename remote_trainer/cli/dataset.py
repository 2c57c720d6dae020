"""``remote-trainer dataset``: what is in it, what is wrong with it, and packing it ahead of a job.

Rules for editing: inspect reads and never writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from remote_trainer.cli import out, session
from remote_trainer.cli.options import Json

if TYPE_CHECKING:
    from remote_trainer.dataset.inspect import Report

SourceArgument = Annotated[str, typer.Argument(metavar="DIR", help="A folder, an archive, or s3://bucket/prefix")]


def register(app: typer.Typer) -> None:
    """Add the noun and its verbs."""
    group = typer.Typer(help="Datasets: inspect and pack them.", no_args_is_help=True)
    group.command("inspect")(inspect)
    group.command("pack")(pack)
    app.add_typer(group, name="dataset")


def inspect(source: SourceArgument, as_json: Json = False) -> None:
    """Count files, formats and sizes; find images without captions, duplicates, and corrupt images (exit code 4)."""
    from remote_trainer.dataset.inspect import inspect as examine

    report = session.wait_for(examine(source))
    if as_json and not report.corrupt:
        out.document(_document(report))
    elif not as_json:
        _show(report)
    report.check()


def pack(source: SourceArgument, as_json: Json = False) -> None:
    """Pack and hash a dataset into the cache, so that submitting it is quick; prints its digest."""
    from remote_trainer.config import load
    from remote_trainer.service.preview import pack_dataset

    packed = session.wait_for(pack_dataset(load(), source))
    if as_json:
        out.document(
            {
                "source": packed.source,
                "digest": packed.digest,
                "size": packed.size,
                "files": packed.files,
                "chunks": [{"sha256": chunk.sha256, "size": chunk.size} for chunk in packed.chunks],
            }
        )
        return
    chunks = out.plural(len(packed.chunks), "chunk")
    out.line(f"{packed.digest}  {packed.source}: {out.plural(packed.files, 'file')}, {out.size(packed.size)} in {chunks}")


def _document(report: Report) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(report)


def _show(report: Report) -> None:
    out.line(
        f"{report.source}: {out.plural(report.files, 'file')}, {out.size(report.bytes)}, {out.plural(report.images, 'image')}"
    )
    for label, counts in (("formats", report.formats), ("sizes", report.resolutions)):
        if counts:
            shown = [f"{name or 'no suffix'} × {count}" for name, count in list(counts.items())[:8]]
            more = f", and {len(counts) - 8} more" if len(counts) > 8 else ""
            out.line(f"  {label}: {', '.join(shown)}{more}")
    for label, paths in (
        ("images without a caption", report.captions_missing),
        ("empty captions", report.captions_empty),
        ("equal images", tuple(" = ".join(group) for group in report.duplicates)),
        ("corrupt images", tuple(f"{path} {why}" for path, why in report.corrupt.items())),
    ):
        if paths:
            out.line(f"  {label} ({len(paths)}): {', '.join(paths[:10])}{', …' if len(paths) > 10 else ''}")
