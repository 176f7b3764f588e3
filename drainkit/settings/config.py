"""Where settings come from: flags, then the environment, then `drainkit.toml`, then defaults."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from . import OF_THE_FILE, Settings, build, outside

CONFIG_FILE = "drainkit.toml"
ENV_PREFIX = "DRAINKIT_"
CONFIG_VARIABLE = "DRAINKIT_CONFIG"  # the file's path, for who works in another folder
# what a kernel gets by other ways, or what is not a notebook's affair
_NOT_FOR_KERNELS = {"redis_url", "mode", "plan", "reports_dir", "notebooks_dir", *OF_THE_FILE}


def load(
    flags: Mapping[str, Any],
    *,
    env_name: str | None = None,
    environ: Mapping[str, str] = os.environ,
    folder: Path | None = None,
    only: frozenset[str] | None = None,
) -> Settings:
    """Merge flags, environment, `drainkit.toml` in `folder` and defaults into checked settings.

    `flags` holds only what was really given. `env_name` picks `[env.NAME]` of the file, whose
    values become defaults. With `only`, all else has its default, whatever was set. Raises
    UsageError with one line for all problems.
    """
    env_name = env_name if env_name is not None else environ.get(f"{ENV_PREFIX}ENV")
    path = Path(environ.get(CONFIG_VARIABLE) or (folder or Path()) / CONFIG_FILE)
    if CONFIG_VARIABLE in environ and not path.is_file():
        raise UsageError(f"{CONFIG_VARIABLE}: {path} is not a file")
    values = read_config(path, env_name, check_names=only is None)
    for name in Settings.model_fields:
        variable = _variable(name)
        if variable in environ and name not in OF_THE_FILE:
            values[name] = environ[variable]
    values.update(flags if env_name is None else {"env": env_name, **flags})
    kept = {k: v for k, v in values.items() if only is None or k in only}
    return build(kept, asked=frozenset(flags))


def config_variable() -> dict[str, str]:
    """The variable that lets a kernel read the drainkit.toml that holds here; empty without one."""
    path = Path(os.environ.get(CONFIG_VARIABLE) or CONFIG_FILE).resolve()
    return {CONFIG_VARIABLE: str(path)} if path.exists() else {}


def kernel_variables(settings: Settings) -> dict[str, str]:
    """The settings that were given, as variables: a kernel's folder may have no drainkit.toml."""
    found = {"DRAINKIT_REDIS_URL": settings.redis_url.get_secret_value()}
    for name in sorted(settings.given - _NOT_FOR_KERNELS):
        value = getattr(settings, name)
        if name == "fields":
            text = json.dumps(value.model_dump(exclude_unset=True))
        elif value is None:
            text = {"throttle": "none", "max_events": "all"}.get(name, "")
        elif isinstance(value, tuple):
            text = "\n".join(value)
        elif name == "allowlist" and value.startswith("@"):
            text = f"@{Path(value[1:]).resolve()}"
        else:
            text = value.isoformat() if hasattr(value, "isoformat") else str(value)
        if text:
            found[_variable(name)] = text.lower() if isinstance(value, bool) else text
    return found


def _variable(name: str) -> str:
    return ENV_PREFIX + outside(name).replace("-", "_").upper()


def _python_name(name: str) -> str:
    return "from_" if name == "from" else name.replace("-", "_")


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Variables that look like settings but are not: misspelt ones, probably."""
    known = {_variable(name) for name in Settings.model_fields} | {CONFIG_VARIABLE}
    return sorted(name for name in environ if name.startswith(ENV_PREFIX) and name not in known)


def read_config(path: Path, env_name: str | None, *, check_names: bool = True) -> dict[str, Any]:
    """The values of `drainkit.toml` with those of `[env.env_name]` laid over them."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if env_name is None:
            return {}
        raise UsageError(f"--env {env_name}: there is no {CONFIG_FILE} here") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{CONFIG_FILE}: {error}") from None
    tables = data.pop("env", {})
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        raise UsageError(f"{CONFIG_FILE}: write environments as tables, [env.NAME]")
    if env_name is not None and env_name not in tables:
        known = ", ".join(sorted(tables)) or "none"
        raise UsageError(f"--env {env_name}: no such table in {CONFIG_FILE}; has {known}")
    names = {name for table in (data, *tables.values()) for name in table}
    unknown = sorted(n for n in names if _python_name(n) not in Settings.model_fields)
    if unknown and check_names:
        raise UsageError(f"{CONFIG_FILE}: unknown key {unknown[0]}; check its spelling")
    values = {**data, **(tables[env_name] if env_name is not None else {})}
    approval = values.get("approval")
    if isinstance(approval, dict) and "allowed_signers" in approval:
        beside = path.parent / str(approval["allowed_signers"])
        values["approval"] = {**approval, "allowed_signers": beside}
    return {_python_name(name): value for name, value in values.items()}
