"""Which files belong to which output, and which of them are complete."""

from __future__ import annotations

import pytest

from remote_trainer.errors import HostError
from remote_trainer.model import Output, OutputKind
from remote_trainer.ports import RemoteFile
from remote_trainer.worker.outputs import MOST_BYTES, arrange, locate, recorded, wanted_globs

CHECKPOINTS = Output(name="checkpoints", kind=OutputKind.CHECKPOINT, glob="checkpoints/*", marker="done.json", keep=2)
LORA = Output(name="lora", kind=OutputKind.FINAL, glob="lora/*.safetensors")
REST = Output(name="rest", kind=OutputKind.ARTIFACT, glob="**")


def listed(path: str, mtime: float = 1, size: int = 1) -> RemoteFile:
    return RemoteFile(path=path, size=size, mtime=mtime, sha256="0" * 64)


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("*.txt", "a.txt", True),
        ("*.txt", "b/a.txt", False),
        ("*.txt", ".a.txt", False),
        (".*", ".a.txt", True),
        ("?.txt", "a.txt", True),
        ("?.txt", "ab.txt", False),
        ("[ab].txt", "b.txt", True),
        ("[!ab].txt", "b.txt", False),
        ("**", "a", True),
        ("**", "a/b/c", True),
        ("**", "a/.b/c", False),
        ("**/*.txt", "a.txt", True),
        ("**/*.txt", "x/y/a.txt", True),
        ("x/**", "x/y/a.txt", True),
        ("x/**", "x", False),
        ("x/**/a", "x/a", True),
        ("a.b+(c)", "a.b+(c)", True),
        ("a.b", "axb", False),
        ("*", "line\nbreak", True),
    ],
)
def test_globs(glob: str, path: str, matches: bool) -> None:
    """A glob matches as in a shell with globstar: ``*`` within a name, ``**`` across folders, neither names that begin with a dot."""
    output = Output(name="x", kind=OutputKind.ARTIFACT, glob=glob)
    assert (locate([output], path) is not None) is matches


def test_a_file_belongs_to_one_output() -> None:
    """A file that several outputs match belongs to the checkpoint, else the final output, else the artifact, in whatever order given."""
    outputs = [REST, LORA, CHECKPOINTS]
    assert locate(outputs, "checkpoints/s1/sub/x.safetensors") == (CHECKPOINTS, "checkpoints/s1")
    assert locate(outputs, "lora/x.safetensors") == (LORA, "lora/x.safetensors")
    assert locate(outputs, "lora/x.txt") == (REST, "lora/x.txt")


def test_a_folder_counts_with_its_marker_only() -> None:
    """A folder without its marker is no unit, and its files are nobody else's either."""
    half = [listed("checkpoints/s1/weights"), listed("checkpoints/s1/sub/done.json")]
    assert arrange([CHECKPOINTS, REST], half) == ([], [])
    units, _ = arrange([CHECKPOINTS, REST], [*half, listed("checkpoints/s1/done.json", mtime=7)])
    assert [(unit.name, unit.mtime, len(unit.files)) for unit in units] == [("checkpoints/s1", 7, 3)]


def test_a_name_that_is_being_written() -> None:
    """A folder whose name begins with a dot is not yet a unit, even with its marker: it is about to be renamed."""
    assert arrange([CHECKPOINTS], [listed("checkpoints/.s1/done.json")]) == ([], [])


def test_only_the_newest_are_kept() -> None:
    """With ``keep`` only the newest units are wanted; within the same second the number in the name decides."""
    names = ["checkpoints/step-9", "checkpoints/step-10", "checkpoints/step-1000", "checkpoints/step-200"]
    units, _ = arrange([CHECKPOINTS], [listed(f"{name}/done.json", mtime=5) for name in names])
    assert [unit.name for unit in units] == ["checkpoints/step-200", "checkpoints/step-1000"]
    units, _ = arrange([CHECKPOINTS], [listed(f"{name}/done.json", mtime=5 - number) for number, name in enumerate(names)])
    assert [unit.name for unit in units] == ["checkpoints/step-10", "checkpoints/step-9"]


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a/../../x", "a//b", "", ".", "a/.", "a\0b", "a\nb", "x" * 300, "a\\b", "\udcff"]
)
def test_paths_that_are_refused(path: str) -> None:
    """A path that is not a plain relative one is refused by name and never part of a unit."""
    assert arrange([REST], [listed(path)]) == ([], [path])


def test_a_digest_that_is_none() -> None:
    """A file listed without a digest is refused: nothing could be checked."""
    assert arrange([REST], [RemoteFile(path="a", size=1, mtime=1, sha256="../../x")]) == ([], ["a"])


def test_a_host_that_lists_too_much() -> None:
    """A listing beyond all bounds is an error before anything is fetched."""
    with pytest.raises(HostError, match="narrow"):
        arrange([REST], [listed("a", size=MOST_BYTES), listed("b")])


def test_what_the_host_is_asked_for() -> None:
    """A unit's folder is asked for with everything in it; units that are dropped or restored as a whole are recorded."""
    assert wanted_globs([CHECKPOINTS, LORA]) == ["checkpoints/*/**", "lora/*.safetensors"]
    assert [recorded(output) for output in (CHECKPOINTS, LORA, REST)] == [True, False, False]
