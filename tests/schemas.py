"""The JSON Schemas of drainkit/schemas, held against real output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import ROOT
from jsonschema import Draft202012Validator


def schema(name: str) -> Any:
    return json.loads((ROOT / "drainkit" / "schemas" / f"{name}.schema.json").read_text())


def strictly(found: Any) -> Any:
    """The schema, by which an object holds nothing that it does not name."""
    if isinstance(found, dict):
        more = {"additionalProperties": False} if "properties" in found else {}
        return {**more, **{name: strictly(value) for name, value in found.items()}}
    return [strictly(one) for one in found] if isinstance(found, list) else found


def holds(name: str, told: Any) -> None:
    Draft202012Validator.check_schema(schema(name))
    errors = [*Draft202012Validator(strictly(schema(name))).iter_errors(told)]
    assert errors == [], [(one.json_path, one.message) for one in errors]


def evidence_holds(folder: Path) -> None:
    """The files of a run's evidence are as their schemas say."""
    for name in ("statement", "run", "plan", "verdicts"):
        holds(name, json.loads((folder / f"{name}.json").read_text()))
