"""The shipped schemas hold for what the commands write, and refuse what they do not."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pviommu.cli import main
from pviommu.counters import Counters
from pviommu.endpoints import ENDPOINTS
from pviommu.process.serve import PROFILES
from pviommu.resources import topologies
from pviommu.schemas import paths
from pviommu_abi.registers import Feature


def schema(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(paths()[name].read_text())
    return loaded


@pytest.mark.row("server", 126)
@pytest.mark.parametrize("name", paths())
def test_it_is_a_schema_and_printed_by_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(name))

    assert main(["schema", name]) == 0
    assert json.loads(capsys.readouterr().out) == schema(name)


@pytest.mark.row("server", 126)
@pytest.mark.parametrize("topology", [[], *([name] for name in topologies())], ids=" ".join)
def test_capabilities_of_every_shipped_topology_are_right(
    topology: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--print-capabilities", *topology]) == 0

    said = json.loads(capsys.readouterr().out)
    jsonschema.validate(said, schema("capabilities"))
    said["functions"][0]["stream"] = 3
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(said, schema("capabilities"))


def test_features_and_profiles_are_those_of_the_code() -> None:
    properties = schema("capabilities")["properties"]

    assert properties["features"]["items"]["enum"] == [feature.name.lower() for feature in Feature if feature.name]
    assert properties["profiles"]["items"]["enum"] == list(PROFILES)
    assert schema("topology")["$defs"]["EndpointSection"]["properties"]["kind"]["enum"] == sorted(ENDPOINTS)


def events_of_the_code(package: Path) -> set[str]:
    """Every ``{"event": NAME}``, also with ``"fields"``, that a record of the server's log is given, or
    ``record.event = NAME``.
    """
    found = set()
    for path in package.rglob("*.py"):
        if path.relative_to(package).parts[0] in ("lab", "bench", "selfcheck"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Dict):
                given = {
                    key.value: value
                    for key, value in zip(node.keys, node.values, strict=True)
                    if isinstance(key, ast.Constant)
                }
                value = given.get("event")
                if (
                    isinstance(value, ast.Constant)
                    and given.keys() <= {"event", "fields"}
                    and len(given) == len(node.keys)
                ):
                    found.add(value.value)
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                found |= {
                    node.value.value
                    for target in node.targets
                    if isinstance(target, ast.Attribute) and target.attr == "event"
                }
    return found


@pytest.mark.row("server", 126)
def test_the_log_has_the_events_of_the_code_and_the_summary_its_counters(checkout: Path) -> None:
    log = schema("log")
    fields = {case["if"]["properties"]["event"]["const"]: case["then"]["required"] for case in log["allOf"]}

    assert set(log["properties"]["event"]["enum"]) == set(fields)
    of_the_code = events_of_the_code(checkout / "device/pviommu") | events_of_the_code(checkout / "protocol")
    assert set(fields) == of_the_code | {"message"}
    assert set(fields["summary"]) > set(Counters().report())


@pytest.mark.row("server", 126)
@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("log", {"level": "info", "event": "message", "message": "no time"}),
        ("log", {"time": "2026-01-01T00:00:00+00:00", "level": "info", "event": "dance", "message": ""}),
        ("log", {"time": "2026-01-01T00:00:00+00:00", "level": "info", "event": "fault", "message": "no fields"}),
        ("results", {"verdict": "passed"}),
        ("capabilities", {"type": "other"}),
    ],
)
def test_what_no_command_writes_is_refused(name: str, document: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema(name))
