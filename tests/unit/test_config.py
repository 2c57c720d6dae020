"""Settings: from file and environment, checked once, every fault told at once and none of the values."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from remote_trainer import config, redact
from remote_trainer.errors import ConfigError

SECRET = "s3cr3t/Value+with=signs"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without settings."""
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def write(home: Path, text: str) -> Path:
    path = home / ".config/remote-trainer/config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def faults(expected: int) -> str:
    """What `load` complains of, after making sure of how many things."""
    with pytest.raises(ConfigError) as caught:
        config.load()
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == expected, lines
    return "\n".join(lines)


def test_a_fresh_machine(home: Path) -> None:
    """Without file and environment everything has a default below the user's XDG folders, and nothing is made."""
    settings = config.load()
    assert settings.data_dir == home / ".local/share/remote-trainer"
    assert settings.objects_url == str(settings.data_dir / "objects")
    assert settings.store_url.startswith("sqlite:")
    assert settings.store_url.endswith(".local/share/remote-trainer/jobs.db")
    assert settings.driver_settings.state_dir == home / ".local/state/remote-trainer"
    assert settings.job_limits.max_attempts == 3
    assert list(home.iterdir()) == []


def test_xdg_folders(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG variables move the folders; a relative one is ignored, as the specification says."""
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert config.load().data_dir == Path("/data/remote-trainer")
    assert config.load().cache_dir == home / ".cache/remote-trainer"


def test_the_environment_wins(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable overrides the same setting of the file and leaves its neighbours, in sections too."""
    write(home, 'lease_s = 20\nmax_jobs = 7\n[s3]\nendpoint = "https://a.example"\nregion = "eu"\n[limits]\nmax_cost = 1.5\n')
    monkeypatch.setenv("REMOTE_TRAINER_LEASE_S", "30")
    monkeypatch.setenv("REMOTE_TRAINER_S3_ENDPOINT", "https://b.example")
    settings = config.load()
    assert (settings.lease_s, settings.max_jobs) == (30, 7)
    assert (settings.s3.endpoint, settings.s3.region) == ("https://b.example", "eu")
    assert settings.job_limits.max_cost == Decimal("1.5")


def test_budgets(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sections of the file, or JSON in a variable; a tenant without one has that of everybody; what is wrong is told."""
    write(home, "max_hourly_spend = 2.5\n[budgets.default]\nper_day = 5\n[budgets.ada]\nper_month = 100.50\n")
    spending = config.load().spending
    assert spending.max_hourly_spend == Decimal("2.5")
    assert (spending.budget("ada").per_month, spending.budget("ada").per_day) == (Decimal("100.5"), 0)
    assert spending.budget("bob").per_day == 5
    for wrong, words in {"much": "write it as JSON", '{"ada": {"per_week": 1}}': "budgets.ada.per_week"}.items():
        monkeypatch.setenv("REMOTE_TRAINER_BUDGETS", wrong)
        with pytest.raises(ConfigError, match=words):
            config.load()
    monkeypatch.setenv("REMOTE_TRAINER_BUDGETS", '{"bob": {"per_day": 1}}')
    assert config.load().spending.budget("bob").per_day == 1


def test_another_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """REMOTE_TRAINER_CONFIG names another file, which must be there."""
    write(home, "max_jobs = 1\n")
    (home / "other.toml").write_text("max_jobs = 2\n")
    monkeypatch.setenv("REMOTE_TRAINER_CONFIG", str(home / "other.toml"))
    assert config.load().max_jobs == 2
    monkeypatch.setenv("REMOTE_TRAINER_CONFIG", str(home / "none.toml"))
    with pytest.raises(ConfigError, match="does not exist"):
        config.load()


def test_all_faults_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fault is told in one go, by the variable or by file and setting."""
    path = write(home, 'lease_s = "soon"\nleaze_s = 3\n[s3]\nendpoint = "ftp://x"\n[limits]\nmax_attempts = 0\n')
    monkeypatch.setenv("REMOTE_TRAINER_MAX_JOBS", "many")
    monkeypatch.setenv("REMOTE_TRAINER_DEPLOYMENT", "No!")
    text = faults(6)
    for name in ("lease_s", "leaze_s", "s3.endpoint", "limits.max_attempts"):
        assert f"{path}: {name}: " in text
    assert "did you mean lease_s?" in text
    assert "REMOTE_TRAINER_MAX_JOBS: " in text
    assert "REMOTE_TRAINER_DEPLOYMENT: " in text


def test_a_misspelt_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is nearly a setting is a fault; what Kubernetes and others put into the environment is not."""
    monkeypatch.setenv("REMOTE_TRAINER_PORT", "tcp://10.0.0.1:80")
    monkeypatch.setenv("REMOTE_TRAINER_SERVICE_HOST", "10.0.0.1")
    config.load()
    monkeypatch.setenv("REMOTE_TRAINER_MAX_JOB", "3")
    assert "did you mean REMOTE_TRAINER_MAX_JOBS?" in faults(1)


def test_a_file_that_is_no_toml(home: Path) -> None:
    """A file that cannot be parsed is told with its place."""
    write(home, "lease_s = \n")
    with pytest.raises(ConfigError, match=r"config\.toml cannot be read.*line 1"):
        config.load()


def test_settings_cannot_change() -> None:
    """Settings are checked once: nobody changes them afterwards."""
    settings = config.load()
    with pytest.raises(ValueError, match="frozen"):
        settings.lease_s = 1


def test_paths(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths may begin with ~ and become absolute; search paths are separated as in PATH."""
    monkeypatch.setenv("REMOTE_TRAINER_TOOLS_PATH", "~/tools:/opt/tools:")
    monkeypatch.setenv("REMOTE_TRAINER_SSH_KEY", "~/.ssh/key")
    settings = config.load()
    assert settings.tools_path == (home / "tools", Path("/opt/tools"))
    assert settings.driver_settings.ssh_key == home / ".ssh/key"


@pytest.mark.parametrize(
    "text", [f'[s3]\nkey_id = "k"\nsecret_key = "{SECRET}"\n', 'store = "mongodb://user:hunter22@db/jobs"\n']
)
def test_a_file_with_secrets_is_private(home: Path, text: str) -> None:
    """A settings file that holds a secret must not be readable by others."""
    path = write(home, text)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        config.load()
    path.chmod(0o600)
    config.load()


def test_secrets_are_not_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither settings nor faults show a secret, and what was read is hidden from everything logged."""
    monkeypatch.setenv("REMOTE_TRAINER_S3_KEY_ID", "key")
    monkeypatch.setenv("REMOTE_TRAINER_S3_SECRET_KEY", SECRET)
    monkeypatch.setenv("REMOTE_TRAINER_STORE", "mongodb://user:hunter%2F22@db/jobs")
    settings = config.load()
    assert SECRET not in repr(settings)
    assert "hunter" not in repr(settings)
    assert settings.s3.secret_key.get_secret_value() == SECRET
    assert redact.redact(f"a {SECRET} b hunter/22 c") == "a *** b *** c"
    monkeypatch.setenv("REMOTE_TRAINER_STORE", "mongo+bad://user:hunter22@db/jobs")
    assert "hunter" not in faults(1)


def test_the_s3_secret_from_a_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The S3 secret may lie in the secrets folder; a key without any secret is a fault."""
    monkeypatch.setenv("REMOTE_TRAINER_S3_KEY_ID", "key")
    with pytest.raises(ConfigError, match="without its secret"):
        config.load()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(home))
    (home / "s3_secret_key").write_text("from-a-file\n")
    (home / "s3_secret_key").chmod(0o400)
    assert config.load().s3.secret_key.get_secret_value() == "from-a-file"


def test_where_secrets_come_from(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret comes from our variable, else the plain one, else its private file; without any the message says where to put it."""
    settings = config.load()
    with pytest.raises(ConfigError, match="REMOTE_TRAINER_SECRET_HF_TOKEN"):
        settings.secret("HF_TOKEN")
    file = home / ".config/remote-trainer/secrets/HF_TOKEN"
    file.parent.mkdir(parents=True)
    file.write_text("of-the-file\n")
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        settings.secret("HF_TOKEN")
    file.chmod(0o600)
    assert settings.secret("HF_TOKEN") == "of-the-file"
    monkeypatch.setenv("HF_TOKEN", "of-the-plain-variable")
    assert settings.secret("HF_TOKEN") == "of-the-plain-variable"
    monkeypatch.setenv("REMOTE_TRAINER_SECRET_HF_TOKEN", "of-our-variable")
    assert settings.secret("HF_TOKEN") == "of-our-variable"
    assert redact.redact("of-the-file of-our-variable") == "*** ***"


@pytest.mark.parametrize("name", ["../config.toml", "", "a b", "/etc/passwd"])
def test_names_of_secrets(name: str) -> None:
    """A secret's name cannot be a path."""
    with pytest.raises(ConfigError, match="no name"):
        config.find_secret(name, Path("/nonexistent"))


def test_every_setting_is_documented() -> None:
    """docs/settings.md holds the table of all settings with their defaults; each has a description."""
    assert all(row.description for row in config.reference())
    page = Path(__file__).parents[2] / "docs" / "settings.md"
    assert config.table() in page.read_text(), "make the table again: python -m remote_trainer.config"
