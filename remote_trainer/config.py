"""The installation's settings: one file, overridden by the environment, checked once, then passed down. There are no globals.

Order, strongest first: ``REMOTE_TRAINER_<NAME>`` (``REMOTE_TRAINER_S3_ENDPOINT`` for ``endpoint`` of ``[s3]``), the TOML file
(``REMOTE_TRAINER_CONFIG``, else ``~/.config/remote-trainer/config.toml``), the default.

Rules for editing: a setting exists only if something reads it, has a default that works on a fresh machine, and a description: it is
the text of docs/settings.md (``python -m remote_trainer.config`` prints the table; a test compares). Messages name the setting and
where it came from, never the value. Importing pydantic takes a fifth of a second: commands import this module when they run.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from remote_trainer.config_limits import BudgetSettings, LimitSettings
from remote_trainer.errors import ConfigError
from remote_trainer.model import Limits
from remote_trainer.policy import Budget, Spending
from remote_trainer.ports import DriverSettings
from remote_trainer.redact import hide

PREFIX = "REMOTE_TRAINER_"
HUB_URL = r"(https?://[^/\s@{}]+(/[^\s@{}]*)?)?"  # it goes into scripts: no user, no spaces, no braces
APP = "remote-trainer"


def _xdg(name: str, fallback: str) -> Path:
    """Return our folder below an XDG base folder; a relative one must be ignored by the XDG specification."""
    base = os.environ.get(name, "")
    return (Path(base) if base.startswith("/") else Path.home() / fallback) / APP


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _split(value: Any) -> Any:
    return tuple(filter(None, value.split(os.pathsep))) if isinstance(value, str) else value


def _words(value: Any) -> Any:
    return tuple(shlex.split(value)) if isinstance(value, str) else value


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
SearchPath = Annotated[tuple[AbsolutePath, ...], NoDecode, BeforeValidator(_split)]
Command = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]
Seconds = Annotated[float, Field(gt=0)]


class S3Settings(BaseModel):
    """How to reach S3, R2 or MinIO. Without a key, boto3's own ways are used (environment, profile, instance role)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str = Field(
        default="", description="URL of an S3-compatible service; empty: Amazon's", pattern=r"^(https?://[^/\s@]+/?)?$"
    )
    region: str = Field(default="auto", description="region of the bucket; `auto` for R2, anything for MinIO")
    key_id: str = Field(default="", description="access key id")
    secret_key: SecretStr = Field(
        default=SecretStr(""), description="secret access key; from the environment or the file `s3_secret_key` in `secrets_dir`"
    )
    ca_bundle: AbsolutePath | None = Field(
        default=None, description="PEM file with the authorities to trust; empty: the usual ones"
    )
    path_style: bool = Field(default=False, description="put the bucket into the path instead of the host name (MinIO)")


class Settings(BaseSettings):
    """All settings. Made by ``load``."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=PREFIX,
        env_nested_delimiter="_",
        env_nested_max_split=1,
        hide_input_in_errors=True,
    )

    data_dir: AbsolutePath = Field(
        default_factory=lambda: _xdg("XDG_DATA_HOME", ".local/share"), description="where jobs and kept artifacts lie by default"
    )
    state_dir: AbsolutePath = Field(
        default_factory=lambda: _xdg("XDG_STATE_HOME", ".local/state"),
        description="jobs of the driver `local`, the key pair for rented machines, files on their way to the object store, logs",
    )
    cache_dir: AbsolutePath = Field(
        default_factory=lambda: _xdg("XDG_CACHE_HOME", ".cache"), description="packed datasets, named by digest; may be deleted"
    )
    secrets_dir: AbsolutePath = Field(
        default_factory=lambda: Path(os.environ.get("CREDENTIALS_DIRECTORY") or _config_dir() / "secrets"),
        description="folder with one file for each secret, readable by the owner only; under systemd its credentials folder",
    )

    store: str = Field(
        default="",
        repr=False,  # a MongoDB URL may carry a password
        pattern=r"^((sqlite:///|mongodb://|mongodb\+srv://).+)?$",
        description="job store: `sqlite:///PATH`, or `mongodb://…/database`; empty: `sqlite:///<data_dir>/jobs.db`",
    )
    objects: str = Field(
        default="",
        pattern=r"^((s3://[^/]+.*)|(file://)?[/~].*)?$",
        description="where artifacts are kept: a folder, or `s3://bucket/prefix`; empty: `<data_dir>/objects`",
    )
    s3: S3Settings = S3Settings()

    deployment: str = Field(
        default="",
        pattern=r"^([a-z0-9]{6})?$",
        description="six letters or digits in every instance label; empty: the store's own",
    )
    tools_path: SearchPath = Field(default=(), description="further folders with tools, separated by colons")
    drivers_path: SearchPath = Field(default=(), description="further folders with driver profiles, separated by colons")
    hub_endpoint: str = Field(
        default="",
        pattern=f"^{HUB_URL}$",
        description="URL of the model hub; empty: what `HF_ENDPOINT` says, else the public one",
    )
    ssh_key: AbsolutePath | None = Field(
        default=None,
        description="private key for hosts; empty: what `~/.ssh` and the agent offer, for rented machines the pair in `state_dir`",
    )
    known_hosts: AbsolutePath | None = Field(default=None, description="known hosts file; empty: `~/.ssh/known_hosts`")
    connect_timeout_s: Seconds = Field(default=20.0, description="how long opening a connection to a host may take")
    keepalive_s: Seconds = Field(
        default=15.0, description="silence after which a connection is probed; it is given up after three times that"
    )
    stall_s: Seconds = Field(
        default=240.0,
        description="how long a transfer may not move at all before it goes on over a new connection; at 10 kB/s it still moves",
    )

    max_jobs: int = Field(default=64, ge=1, description="jobs one worker drives at the same time")
    lease_s: float = Field(
        default=10.0, ge=1, description="how long a silent worker keeps its jobs before another one takes them"
    )
    collect_interval_s: Seconds = Field(default=10.0, description="how often settled files of a running job are fetched")
    limits: LimitSettings = LimitSettings()

    max_instance_price: Decimal = Field(
        default=Decimal(0), ge=0, description="US dollars an hour of one rented machine may cost; 0: no cap"
    )
    max_hourly_spend: Decimal = Field(
        default=Decimal(0),
        ge=0,
        description="US dollars an hour of all rented machines together may cost; jobs wait for room; 0: no cap",
    )
    budgets: dict[str, BudgetSettings] = Field(
        default_factory=dict,
        description="what a tenant's jobs may cost, US dollars: sections `[budgets.TENANT]` with `per_day` and `per_month`; "
        "`[budgets.default]` is for all others; in the environment JSON ([money.md](money.md))",
    )

    alarm_command: Command = Field(
        default=(),
        description="command with its arguments, run with an alarm as JSON on its stdin: a list, or one line as for a shell",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least severity that is logged")
    log_format: Literal["auto", "json", "text"] = Field(default="auto", description="`auto`: text on a terminal, else JSON lines")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over what ``load`` passes in from the file; read nothing else."""
        return env_settings, init_settings

    @property
    def store_url(self) -> str:
        """The job store's URL, the default filled in."""
        return self.store or f"sqlite:///{self.data_dir / 'jobs.db'}"

    @property
    def objects_url(self) -> str:
        """The object store's URL, the default filled in."""
        return self.objects or str(self.data_dir / "objects")

    @property
    def job_limits(self) -> Limits:
        """What bounds a job that names no limits of its own."""
        return Limits(**self.limits.model_dump())

    @property
    def spending(self) -> Spending:
        """What the installation, and each tenant of it, may spend."""
        budgets = {tenant: Budget(**budget.model_dump()) for tenant, budget in self.budgets.items()}
        return Spending(max_instance_price=self.max_instance_price, max_hourly_spend=self.max_hourly_spend, budgets=budgets)

    @property
    def driver_settings(self) -> DriverSettings:
        """What every driver is given."""
        return DriverSettings(
            state_dir=self.state_dir,
            ssh_key=self.ssh_key,
            known_hosts=self.known_hosts,
            connect_timeout_s=self.connect_timeout_s,
            keepalive_s=self.keepalive_s,
            stall_s=self.stall_s,
            find_secret=lambda name: find_secret(name, self.secrets_dir),
        )

    def secret(self, name: str) -> str:
        """Return a secret by name: ``REMOTE_TRAINER_SECRET_<NAME>``, ``<NAME>``, or the file of that name in ``secrets_dir``."""
        found = find_secret(name, self.secrets_dir)
        if found is None:
            raise ConfigError(
                f"secret {name} is not set: export {PREFIX}SECRET_{name.upper()}, or write it to {self.secrets_dir / name}"
            )
        return found


# ------------------------------------------------------------------------------------------------------------- loading


def load() -> Settings:
    """Return the settings of this process, or raise ConfigError with everything that is wrong with them."""
    path = config_file()
    document = _read(path)
    faults = list(_misspelt(os.environ))
    try:
        settings = Settings(**document)
    except ValidationError as error:
        faults += _explain(error, path)
    except SettingsError as error:  # what should be JSON in a variable is none
        faults.append(f"{error}: write it as JSON")
    if faults:
        raise ConfigError("\n".join(["the settings cannot be used:", *(f"  {fault}" for fault in faults)]))
    settings = _with_s3_secret(settings)
    hide(settings.s3.secret_key.get_secret_value())
    hide(unquote(urlsplit(settings.store).password or ""))
    return settings


def config_file() -> Path:
    """Return where the settings file is, or would be."""
    named = os.environ.get(f"{PREFIX}CONFIG")
    return _absolute(Path(named)) if named else _config_dir() / "config.toml"


def find_secret(name: str, folder: Path) -> str | None:
    """Return a secret from the environment or from its file; ConfigError if others can read the file."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise ConfigError(f"{name!r:.80} is no name for a secret: use letters, digits and underscores")
    for variable in (f"{PREFIX}SECRET_{name.upper()}", name):
        if os.environ.get(variable):
            return _hidden(os.environ[variable])
    path = folder / name
    try:
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"secret {name}: {path} cannot be read ({type(error).__name__}): check its owner, mode and content"
        ) from None
    _check_private(path)
    return _hidden(text.strip())


def _hidden(secret: str) -> str:
    hide(secret)
    return secret


def _with_s3_secret(settings: Settings) -> Settings:
    if not settings.s3.key_id or settings.s3.secret_key.get_secret_value():
        return settings
    secret = find_secret("s3_secret_key", settings.secrets_dir)
    if secret is None:
        raise ConfigError(
            f"s3.key_id is set without its secret: set {PREFIX}S3_SECRET_KEY, or write it to {settings.secrets_dir}/s3_secret_key"
        )
    return settings.model_copy(update={"s3": settings.s3.model_copy(update={"secret_key": SecretStr(secret)})})


def _config_dir() -> Path:
    return _xdg("XDG_CONFIG_HOME", ".config")


def _read(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text())
    except FileNotFoundError:
        if os.environ.get(f"{PREFIX}CONFIG"):
            raise ConfigError(f"{PREFIX}CONFIG names {path}, which does not exist") from None
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    s3 = document.get("s3")
    if (isinstance(s3, dict) and "secret_key" in s3) or re.search(r"//[^/]*:[^/]*@", str(document.get("store", ""))):
        _check_private(path)
    return document


def _check_private(path: Path) -> None:
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"{path} holds a secret and others may read it: chmod 600 {path}")


def _explain(error: ValidationError, path: Path) -> Iterator[str]:
    known = {row.name for row in reference()}
    for fault in error.errors(include_input=False, include_url=False, include_context=False):
        name = ".".join(str(part) for part in fault["loc"] if not isinstance(part, int))
        variable = PREFIX + name.replace(".", "_").upper()
        where = variable if variable in map(str.upper, os.environ) else f"{path}: {name}"
        if fault["type"] == "extra_forbidden":
            yield f"{where}: there is no such setting{_suggest(name, known)}"
        else:
            yield f"{where}: {fault['msg']}"


def _misspelt(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield variables that are nearly ours. Only nearly: Kubernetes sets REMOTE_TRAINER_PORT and more for a service of that name."""
    known = [row.variable for row in reference()] + [f"{PREFIX}CONFIG"]
    for variable in environment:
        if variable.startswith(PREFIX) and variable not in known:
            close = difflib.get_close_matches(variable, known, n=1, cutoff=0.94)
            if close:
                yield f"{variable}: there is no such setting; did you mean {close[0]}?"


def _suggest(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


# ------------------------------------------------------------------------------------------------------------ reference


class Row(NamedTuple):
    """One setting as documented."""

    name: str  # in the file: ``lease_s``, ``s3.endpoint``
    variable: str
    default: str
    description: str


def reference() -> tuple[Row, ...]:
    """Return every setting, in order of definition."""
    return tuple(_rows(Settings, ""))


def table() -> str:
    """Return the table of docs/settings.md."""
    head = ["| setting | variable | default | meaning |", "|---|---|---|---|"]
    return "\n".join([*head, *(f"| `{r.name}` | `{r.variable}` | {r.default} | {r.description} |" for r in reference())]) + "\n"


def _rows(model: type[BaseModel], section: str) -> Iterator[Row]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _rows(field.annotation, f"{name}.")
        else:
            full = section + name
            yield Row(full, PREFIX + full.replace(".", "_").upper(), _default(name, field), field.description or "")


#: Defaults that depend on the machine, in words.
_COMPUTED = {
    "data_dir": "`~/.local/share/remote-trainer`",
    "state_dir": "`~/.local/state/remote-trainer`",
    "cache_dir": "`~/.cache/remote-trainer`",
    "secrets_dir": "`~/.config/remote-trainer/secrets`",
}


def _default(name: str, field: FieldInfo) -> str:
    if name in _COMPUTED:
        return _COMPUTED[name]
    if field.default_factory is not None:
        return ""
    value = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
    return "" if value in ("", None, ()) else f"`{value}`"


if __name__ == "__main__":
    print(table(), end="")
