"""Values never break out of a script: checked by real shells, over hand-picked and over generated scripts."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remote_trainer.recipe.render import RenderError, check_template, render_shell, render_text
from tests.support.patience import PATIENCE_S

ATTACKS = [
    "$(touch {flag})", "`touch {flag}`", "; touch {flag};", "'; touch {flag}; '", '"; touch {flag}; "', "\ntouch {flag}\n",
    "\\'; touch {flag}; '", "'\"'\"'; touch {flag} #", "*", "~", "-n", "", " ", "a\tb  c", "$HOME ${HOME}", "\\", "!!", "&",
    "ünï→", "\x01\x7f",
    "END\ntouch {flag}\n", "{{ 7 * 7 }}", "%s%n", "a'b\"c\\d$e`f",
]  # fmt: skip

SHELLS = [shell for shell in (["dash"], ["bash"], ["busybox", "sh"], ["sh"]) if shutil.which(shell[0])]


def run(shell: list[str], script: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    env = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    return subprocess.run([*shell, "-c", script], cwd=folder, env=env, capture_output=True, timeout=PATIENCE_S, check=False)


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_value_arrives_as_one_unchanged_argument(attack: str, shell: list[str], tmp_path: Path) -> None:
    """Whatever a parameter holds, the command gets exactly that as one argument, and nothing else is run."""
    value = attack.replace("{flag}", str(tmp_path / "flag"))
    script = render_shell("printf '<%s>' before {{ v }} after", {"v": value})
    assert run(shell, script, tmp_path).stdout == f"<before><{value}><after>".encode()
    assert not (tmp_path / "flag").exists()


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_list_becomes_one_argument_for_each_item(attack: str, tmp_path: Path) -> None:
    """A list of two values is two arguments, however they look."""
    value = attack.replace("{flag}", str(tmp_path / "flag"))
    script = render_shell("printf '<%s>' {{ v }}", {"v": [value, value]})
    assert run(["sh"], script, tmp_path).stdout == f"<{value}><{value}>".encode()


@given(value=st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=40))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_survives_the_shell(value: str, tmp_path: Path) -> None:
    """Any text without NUL comes through the shell unchanged."""
    assert run(["sh"], render_shell("printf %s {{ v }}", {"v": value}), tmp_path).stdout == value.encode()


#: Pieces of scripts that open, close and nest whatever can be opened. Most combinations are nonsense, which is the point.
PIECES = [
    "'", '"', "`", "\\", "$", "$(", ")", "(", "$((", "))", "${x:-", "}", "${#x}", "#", " ", "\n", ";", "|", "&", "<", ">",
    "<<E\n", "<<-'E' \n",
    "\nE\n", "\n\tE\n", "x", "echo ", "case x in x) ", ";; esac", "if true; then ", "\nfi\n", "\\\n", "$'", '$"', "<<", "E", "$$", "$#",
    "{ ", "! ",
    "a=", "for i in ", "; do ", "done", "[ ", "]", "x#y", "-",
]  # fmt: skip


@given(before=st.lists(st.sampled_from(PIECES), max_size=7), after=st.lists(st.sampled_from(PIECES), max_size=4))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_where_a_value_may_stand_it_cannot_break_out(before: list[str], after: list[str], tmp_path: Path) -> None:
    """In any script whatsoever, a value is either refused or never runs as code."""
    flag = tmp_path / "flag"
    attack = f"'\"`;\ntouch {flag}\nE\n\tE\n#$(touch {flag})`touch {flag}`\\' \" ; touch {flag} ; )}}"
    template = "x=1\n" + "".join(before) + "{{ v }}" + "".join(after)
    try:
        script = render_shell(template, {"v": attack})
    except RenderError:
        return
    # A command that is not there takes the place of a value in command position.
    for shell in (["dash"], ["bash", "--posix"]):
        run(shell, script, tmp_path)
        assert not flag.exists(), script


PLACES = [
    ("echo {{ v }}", True),
    ("echo a{{ v }}b", True),
    ("echo 'a'{{ v }}\"b\"", True),
    ("x=$(echo {{ v }})", True),
    ('echo "$(echo {{ v }})"', True),
    ('echo "${x:-"y"}" {{ v }}', False),
    ("echo ${x:-{{ v }}}", True),
    ("echo ${#x} {{ v }}", True),
    ("cat <{{ v }} >{{ v }}", True),
    ("cat <<E\nx\nE\necho {{ v }}", True),
    ("cat <<-E\n\tx\n\tE\necho {{ v }}", True),
    ("cat <<A <<'B'\nA\nx\nB\necho {{ v }}", True),
    ("echo $((1 + 2)) {{ v }}", True),
    ("echo x#{{ v }}", True),
    ("# x\necho {{ v }}", True),
    ("case x in a) echo {{ v }};; esac", True),
    ("echo \\\\ {{ v }}", True),
    ('echo "{{ v }}"', False),
    ("echo '{{ v }}'", False),
    ("echo `echo {{ v }}`", False),
    ("echo ok # {{ v }}", False),
    ("\\\n# {{ v }}", False),
    ("cat <<E\n{{ v }}\nE", False),
    ("cat <<{{ v }}", False),
    ("cat <<E\nE \necho {{ v }}", False),
    ("echo $(({{ v }}))", False),
    ("echo \\{{ v }}", False),
    ("echo ${{ v }}", False),
    ('echo "${x:-{{ v }}}"', False),
    ("echo $(case x in x) echo y;; esac) {{ v }}", False),
    ("echo $'a' {{ v }}", False),
    # Found by generated scripts:
    ("echo `echo ${x:-{{ v }}}`", False),
    ("cat <<`x`\nx\n`x`\necho {{ v }}", False),
    ("cat <<'a b'\na\n{{ v }}", False),
]


@pytest.mark.parametrize(("template", "allowed"), PLACES)
def test_places(template: str, allowed: bool) -> None:
    """Values stand where the shell reads words, and the check of the recipe and the rendering agree on it."""
    assert (not check_template(template, ["v"], quoted=True)) is allowed
    if allowed:
        render_shell(template, {"v": "a b"})
    else:
        with pytest.raises(RenderError, match="stands"):
            render_shell(template, {"v": "a b"})


def test_a_branch_that_opens_quotes_is_seen_when_it_is_taken() -> None:
    """What only some parameters make of a script is checked again when it is rendered with them."""
    template = '{% if v %}"{% endif %}{% if not v %}"{% endif %}" {{ v }}'
    with pytest.raises(RenderError, match="within quotes"):
        render_shell('echo {% if v %}"{% endif %}{{ v }}', {"v": "x"})
    assert render_shell(template.replace("{{ v }}", "{{ w }}"), {"v": "", "w": "x y"}) == "\"\" 'x y'"


def test_raw_puts_text_in_as_it_is() -> None:
    """`| raw` is the way to put a number into arithmetic, or a part of a script together."""
    assert render_shell("echo $(({{ n | raw }} * 2)) '{{ s | raw }}'", {"n": 3, "s": "a b"}) == "echo $((3 * 2)) 'a b'"


def test_plain_text_is_not_quoted() -> None:
    """Environment values and globs hold the value itself."""
    assert render_text("{{ v }}/{{ n }}/{{ b }}/{{ items }}", {"v": "a 'b", "n": 1e-4, "b": True, "items": ["x", 1]}) == (
        'a \'b/0.0001/true/["x", 1]'
    )


@pytest.mark.parametrize(
    ("template", "values", "message"),
    [
        ("{{ v }}", {"v": None}, "not set"),
        ("{{ v }}", {}, "'v' is undefined"),
        ("{{ v }}", {"v": "a\0b"}, "NUL"),
        ("{{ v * 1000000000 }}", {"v": "x"}, "numbers only"),
        ("{{ 1 / v }}", {"v": 0}, "division by zero"),
        ("{% for a in v %}{% for b in v %}{{ a }}{% endfor %}{% endfor %}", {"v": ["x" * 50] * 1000}, "grows beyond"),
    ],
)
def test_what_cannot_be_rendered_says_why(template: str, values: dict[str, object], message: str) -> None:
    """A rendering that fails is one RenderError in words; a bomb is stopped."""
    with pytest.raises(RenderError, match=message):
        render_shell(template, values)
