"""Finding tools, scripts, profiles and drivers: everything that is there, nothing twice, a helpful word for what is not."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from remote_trainer import plugins
from remote_trainer.errors import ConfigError, Conflict, NotFound, RecipeError
from remote_trainer.model import Resources
from remote_trainer.ports import DriverSettings
from remote_trainer.recipe.load import load_recipe


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty project and an empty configuration: only the bundled things are there besides what a test adds."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def add_tool(tools: Path, name: str, version: int, more: str = "") -> Path:
    file = tools / name / str(version) / "tool.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"name: {name}\nversion: {version}\ndescription: X\nsteps: [{{name: a, run: 'true'}}]\n{more}")
    return file


def test_the_newest_version_is_taken_unless_one_is_named(tmp_path: Path) -> None:
    """9 is older than 10."""
    files = {version: add_tool(tmp_path / "tools", "mine", version) for version in (1, 9, 10)}
    assert plugins.find_tool("mine", [tmp_path / "tools"]) == files[10]
    assert plugins.find_tool("mine@9", [tmp_path / "tools"]) == files[9]


def test_bundled_project_and_user_tools_are_found(tmp_path: Path) -> None:
    """The search path is: given folders, the project, the user's configuration, the package."""
    add_tool(tmp_path / "project" / "tools", "project-tool", 1)
    add_tool(tmp_path / "config" / "remote-trainer" / "tools", "user-tool", 1)
    add_tool(tmp_path / "given", "given-tool", 1)
    refs = [tool.ref for tool in plugins.find_tools([tmp_path / "given"])]
    assert {"project-tool@1", "user-tool@1", "given-tool@1", "hello@1", "sdxl-lora@1"} <= set(refs)
    assert refs == sorted(refs)


def test_a_tool_that_is_there_twice_is_refused_with_both_places(tmp_path: Path) -> None:
    """Nothing shadows anything."""
    first = add_tool(tmp_path / "a", "mine", 1)
    second = add_tool(tmp_path / "b", "mine", 1)
    for find in (lambda folders: plugins.find_tool("mine@1", folders), plugins.find_tools):
        with pytest.raises(Conflict) as caught:
            find([tmp_path / "a", tmp_path / "b"])
        assert str(first) in str(caught.value) and str(second) in str(caught.value)
    assert plugins.find_tool("hello", [tmp_path / "a", tmp_path / "b"]), "others are still of use"


def test_the_same_folder_twice_is_no_conflict(tmp_path: Path) -> None:
    """A folder reached in two ways is one folder."""
    add_tool(tmp_path / "a", "mine", 1)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert plugins.find_tool("mine", [tmp_path / "a", tmp_path / "link", tmp_path / "a"])


@pytest.mark.parametrize(
    ("find", "message"),
    [
        (lambda: plugins.find_tool("helo"), "no tool 'helo'. Did you mean 'hello'\\? There are: evaluate-lora, flux-lora, hello"),
        (lambda: plugins.find_tool("hello@7"), "no version '7' of the tool hello; there are: hello@1"),
        (lambda: plugins.find_tool("hello@"), "no version ''"),
        (lambda: plugins.find_tool("../hello"), "no tool '../hello'"),
        (lambda: plugins.find_scripts("sdxl_lra"), "Did you mean 'sdxl_lora'"),
        (lambda: plugins.find_profile("locl"), "no driver or profile 'locl'. Did you mean 'local'"),
        (lambda: plugins.make_driver("sssh", {}, DriverSettings(state_dir=Path())), "no driver 'sssh'. Did you mean 'ssh'"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(find: object, message: str) -> None:
    """NotFound names the nearest and all there are."""
    with pytest.raises(NotFound, match=message):
        find()  # type: ignore[operator]


def test_profiles_are_read(tmp_path: Path) -> None:
    """A profile is a driver with options, wishes and limits; a driver without a profile is one by itself."""
    (tmp_path / "lab.yaml").write_text(
        "driver: ssh\ndescription: Lab\noptions: {host: me@lab}\nresources: {gpus: 2}\n"
        "limits: {max_hours: 2, max_cost: 1.5, max_attempts: 2}\n"
    )
    lab = plugins.find_profile("lab", [tmp_path])
    assert (lab.driver, lab.options, lab.resources) == ("ssh", {"host": "me@lab"}, Resources(gpus=2))
    assert lab.limits == {"max_hours": 2.0, "max_cost": Decimal("1.5"), "max_attempts": 2}
    assert {"lab", "local", "ssh"} <= {profile.name for profile in plugins.find_profiles([tmp_path])}


def test_a_bad_profile_is_refused_with_all_faults(tmp_path: Path) -> None:
    """A profile is checked as a recipe is."""
    (tmp_path / "lab.yaml").write_text("drivr: ssh\nlimits: {max_hours: 0}\n")
    with pytest.raises(RecipeError) as caught:
        plugins.find_profile("lab", [tmp_path])
    assert [(fault.line, fault.field) for fault in caught.value.faults] == [(1, ""), (1, "/drivr"), (2, "/limits/max_hours")]


def test_two_profiles_of_one_name_are_refused(tmp_path: Path) -> None:
    """The user's local.yaml does not silently replace the bundled one."""
    (tmp_path / "local.yaml").write_text("driver: local\n")
    with pytest.raises(Conflict, match=r"driver profile local is there twice.*local\.yaml and .*local\.yaml"):
        plugins.find_profile("local", [tmp_path])


def test_a_driver_that_cannot_be_imported_is_a_configuration_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed driver whose own parts are missing says so; one that two packages bring is refused."""
    for package, module in (("one", "no_such_module"), ("two", "other_module")):
        info = tmp_path / f"{package}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(
            f"[remote_trainer.drivers]\nbroken = {module}:Driver\nlonely-{package} = {module}:Driver\n"
        )
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = DriverSettings(state_dir=tmp_path)
    assert "lonely-one" in plugins.driver_names()
    with pytest.raises(ConfigError, match="no_such_module"):
        plugins.make_driver("lonely-one", {}, settings)
    with pytest.raises(Conflict, match=r"no_such_module:Driver and other_module:Driver"):
        plugins.make_driver("broken", {}, settings)


def test_options_written_as_text_get_the_type_that_the_driver_wants() -> None:
    """Numbers, truths and lists can be given on the command line; what cannot be read is left for the driver to refuse."""
    given = {"user": "7", "min_cuda": "12.4", "verified": "false", "gpu_names": "RTX 4090, L40S", "blocked_machines": "5,6"}
    wanted = {"user": "7", "min_cuda": 12.4, "verified": False, "gpu_names": ["RTX 4090", "L40S"], "blocked_machines": [5, 6]}
    assert plugins.read_options("vastai", given) == wanted
    assert plugins.read_options("vastai", {"min_cuda": "new", "other": "x"}) == {"min_cuda": "new", "other": "x"}


def test_files_of_a_tool_are_copied_without_litter(tmp_path: Path) -> None:
    """The input "tool" holds what the recipe lists, under its last name, and no caches."""
    file = add_tool(tmp_path / "tools", "mine", 1, "files: [scripts/mine, data/notes.txt]\n")
    scripts = tmp_path / "project" / "scripts" / "mine"
    (scripts / "__pycache__").mkdir(parents=True)
    (scripts / "__pycache__" / "x.pyc").write_text("")
    (scripts / "run.py").write_text("1")
    (file.parent / "data").mkdir()
    (file.parent / "data" / "notes.txt").write_text("2")
    plugins.copy_tool_files(load_recipe(file), tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {"mine/run.py", "notes.txt"}


def test_missing_and_clashing_files_are_faults_of_the_recipe(tmp_path: Path) -> None:
    """A tool is validated with what it ships."""
    file = add_tool(tmp_path / "tools", "mine", 1, "files: [scripts/none, a/x, b/x]\n")
    for name in ("a", "b"):
        (file.parent / name).mkdir()
        (file.parent / name / "x").write_text("")
    faults = plugins.validate_tool(file.parent)
    assert [fault.field for fault in faults] == ["/files/0", "/files/2"]


def test_importing_and_listing_is_cheap() -> None:
    """Completion and --help import this: no YAML, no schemas, no drivers."""
    code = (
        "import sys; from remote_trainer import plugins; plugins.find_tools(); plugins.driver_names();"
        "print([m for m in ('yaml', 'jsonschema', 'jinja2', 'asyncssh', 'pydantic', 'asyncio') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
