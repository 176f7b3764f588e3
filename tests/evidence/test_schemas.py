"""The JSON Schemas in drainkit/schemas: as the declarations say, and true of real output."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any, get_type_hints

import pyarrow as pa
import pytest
from backlogs import deliver, seed
from books import at, live
from conftest import Cli
from pydantic import TypeAdapter
from schemas import holds, schema
from servers import Server

from drainkit.core.plan import Plan
from drainkit.core.policy import Policy
from drainkit.core.summary import COUNTS, Summary
from drainkit.core.verdicts import Verdict
from drainkit.evidence.verify import ROW
from drainkit.operations.checks import Finding
from drainkit.operations.state import RunningDrain
from drainkit.server.ledger import End
from drainkit.server.reading import Backlog, Consumer, Group, StreamInfo

INNER = {"changes", "expected", "is_counted", "pace", "unreadable"}  # of a summary, not in its JSON
#: Where in which schema a declaration stands.
DECLARED = {
    ("plan", ""): Plan, ("plan", "policy"): Policy, ("run", ""): Summary, ("drain", ""): Summary,
    ("verdicts", "[]"): Verdict, ("status", "stream"): StreamInfo, ("status", "groups[]"): Group,
    ("status", "groups[] backlog"): Backlog, ("status", "groups[] consumer_list[]"): Consumer,
    ("status", "running_drains[]"): RunningDrain, ("status", "last_run"): End,
    ("status", "verdict findings[]"): Finding, ("check", "findings[]"): Finding,
    ("check", "streams[] stream"): StreamInfo, ("check", "streams[] groups[]"): Group,
    ("check", "streams[] groups[] backlog"): Backlog,
}  # fmt: skip


def declared(kind: type) -> dict[str, Any]:
    """The schema of each value that a declaration names; {} for one that is declared elsewhere."""
    hints = get_type_hints(kind, localns={"pa": pa})
    if kind is Summary:  # counts are null where what was recorded is not known
        hints |= {name: int | None for name in COUNTS if hints[name] is int}
    found = {}
    for name, hint in hints.items():
        if "ClassVar" in str(hint) or (kind is Summary and name in INNER):
            continue
        kinds = {hint, *getattr(hint, "__args__", ())}
        is_text = isinstance(hint, type) and issubclass(hint, str)  # a name, with its bytes
        is_other = kind is Policy or any(map(is_dataclass, kinds))
        found[name] = {} if is_other else TypeAdapter(str if is_text else hint).json_schema()
    return found


def part(found: Any, path: str) -> Any:
    """The schema at a path of names; `[]` is an array's item, and null does not count."""
    for name in path.replace("[]", " []").split():
        found = found["items"] if name == "[]" else found["properties"][name]
        found = next((one for one in found.get("anyOf", ()) if one != {"type": "null"}), found)
    return found


@pytest.mark.parametrize(("name", "path"), DECLARED)
def test_schemas_are_as_declared(name: str, path: str) -> None:
    """Each value of a declaration is there, with its type."""
    there = part(schema(name), path)["properties"]
    for key, value in declared(DECLARED[name, path]).items():
        assert key in there, key
        if value and "properties" not in there[key]:
            found = {k: v for k, v in there[key].items() if k not in ("description", "enum")}
            assert found == value, key


def test_real_output_is_as_the_schemas_say(valkey: Server, stream: str, cli: Cli) -> None:
    """What dry and live drains print and, of a stream drained in part and stopped, status, check
    and runs; a schema names each key there is (of evidence: test_pipeline.py)."""
    where = at(valkey, stream)
    seed(valkey, stream, 60, delivered=20)
    deliver(valkey, stream, "c", 3)
    holds("drain", cli.done("drain", "--json", *where).json())
    holds("drain", cli.done(*live(valkey, stream, "--max-events", 7,
                                  "--allow-active-consumers")).json())  # fmt: skip
    holds("status", cli("status", "--json", *where).json())
    cli.done("stop", "--reason", "x", *where)
    assert cli(*live(valkey, stream)).rc == 4
    (cli.cwd / "reports").mkdir()
    for command in ("status", "check"):
        holds(command, cli(command, "--json", *where).json())
    holds("runs", cli("runs", "--json", *where).json())
    assert [*part(schema("runs"), "runs[]")["properties"]] == [*ROW]
