"""Targets, quoting and the environment of local steps, without any connection."""

from __future__ import annotations

import subprocess

import pytest

from remote_trainer.errors import ConfigError
from remote_trainer.transport.command import login_environment
from remote_trainer.transport.quote import command_line
from remote_trainer.transport.target import Target, parse_target


@pytest.mark.parametrize(
    ("text", "target", "shown"),
    [
        ("box", Target("box"), "box"),
        ("me@box", Target("box", "me"), "me@box"),
        ("me@box:2222", Target("box", "me", 2222), "me@box:2222"),
        ("ssh://me@box:2222/", Target("box", "me", 2222), "me@box:2222"),
        ("me@10.0.0.7:22", Target("10.0.0.7", "me", 22), "me@10.0.0.7:22"),
        ("me@[fe80::1%eth0]:22", Target("fe80::1%eth0", "me", 22), "me@[fe80::1%eth0]:22"),
        ("a@realm@box", Target("box", "a@realm"), "a@realm@box"),
        (" box ", Target("box"), "box"),
    ],
)
def test_targets(text: str, target: Target, shown: str) -> None:
    """What a user may write for a host, and how it is shown."""
    assert (parse_target(text), str(target)) == (target, shown)


@pytest.mark.parametrize(
    "text", ["", "-oProxyCommand=sh", "me@", "me@-x", "a b", "box:0", "box:70000", "box:x", "box;ls", "$(ls)@box", "a\nb"]
)
def test_no_targets(text: str) -> None:
    """What could be an option, a command or nothing is refused, with the accepted forms."""
    with pytest.raises(ConfigError, match="user@box:2222"):
        parse_target(text)


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_quoting_survives_a_shell(shell: str) -> None:
    """A shell that reads the command line passes on each argument as it was."""
    odd = ["", "a b", "'", '"', "\\", "$HOME", "`x`", "*", "line\nbreak", "!", "#", "ü"]
    done = subprocess.run([shell, "-c", command_line(["printf", r"%s\0", *odd])], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == odd


@pytest.mark.parametrize("argv", [[], ["a\0b"]])
def test_what_is_no_command(argv: list[str]) -> None:
    """Nothing, and zero bytes, cannot be run."""
    with pytest.raises(ValueError, match="a command needs"):
        command_line(argv)


def test_steps_on_this_machine_do_not_see_our_secrets() -> None:
    """Of the worker's environment a local command gets what a login has and what GPUs need, nothing else."""
    ours = {
        "PATH": "/bin",
        "HOME": "/h",
        "LC_ALL": "C",
        "CUDA_VISIBLE_DEVICES": "0",
        "AWS_SECRET_ACCESS_KEY": "x",
        "HF_TOKEN": "y",
    }
    assert set(login_environment(ours)) == {"PATH", "HOME", "LC_ALL", "CUDA_VISIBLE_DEVICES"}
