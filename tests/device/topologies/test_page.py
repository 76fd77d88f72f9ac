"""docs/topology.md has every key with its rule, its default and its meaning, as the code has them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from pviommu import resources
from pviommu.documents import rule
from pviommu.endpoints import ENDPOINTS, endpoint_class
from pviommu.schemas import paths
from pviommu.topology import EndpointSection, IommuSection, MsiSection, ReservedSection, SmmuSection, load, schema

TABLES = {
    "[iommu]": IommuSection,
    "[[endpoint]]": EndpointSection,
    "[[endpoint.reserved]]": ReservedSection,
    "[[smmu]]": SmmuSection,
    "[[msi]]": MsiSection,
}


def rows_of_the_code(kind: type[msgspec.Struct]) -> list[tuple[str, ...]]:
    """Key, rule, default and meaning of every field that is no table of its own."""
    return rows_of(schema()["$defs"][kind.__name__])


def rows_of_options(kind: str) -> list[tuple[str, ...]]:
    [definition] = msgspec.json.schema(endpoint_class(kind).OPTIONS)["$defs"].values()
    return rows_of(definition)


def rows_of(definition: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for key, node in definition["properties"].items():
        if node.get("type") == "array":
            continue
        choice = next((choice for choice in node.get("anyOf", ()) if choice["type"] != "null"), node)
        default = json.dumps(node["default"]) if node.get("default") is not None else ""
        if key in definition["required"]:
            default = "must be given"
        if key in ("vendor-id", "device-id"):
            default = f"{node['default']:#x}"
        rows.append((key, rule(choice), default, node.get("description", choice.get("description"))))
    return rows


def rows_of_the_page(page: str, heading: str) -> list[tuple[str, ...]]:
    section = page.partition(f"\n## `{heading}`")[2].partition("\n## ")[0]
    lines = re.findall(r"^\| `([\w-]+)` \| (.*) \| (.*) \| (.*) \|$", section, re.MULTILINE)
    return [(key, values, default.strip("`"), meaning) for key, values, default, meaning in lines]


@pytest.mark.row("server", 123)
@pytest.mark.parametrize("heading", TABLES)
def test_the_page_has_every_key_with_its_values_default_and_meaning(heading: str, checkout: Path) -> None:
    page = (checkout / "docs/topology.md").read_text()

    assert rows_of_the_page(page, heading) == rows_of_the_code(TABLES[heading])


def test_the_examples_of_the_page_are_right(checkout: Path, tmp_path: Path) -> None:
    examples = re.findall(r"^```toml\n(.*?)^```", (checkout / "docs/topology.md").read_text(), re.MULTILINE | re.DOTALL)

    assert examples
    for text in examples:
        (tmp_path / "example.toml").write_text(text)
        load(tmp_path / "example.toml")


@pytest.mark.row("server", 126)
def test_the_shipped_schema_is_that_of_the_code() -> None:
    assert json.loads(paths()["topology"].read_text()) == json.loads(json.dumps(schema())), (
        "python -m pviommu.schemas writes it anew"
    )


@pytest.mark.row("server", 126)
@pytest.mark.parametrize("name", resources.topologies())
def test_shipped_topologies_are_right_by_the_schema(name: str) -> None:
    document = msgspec.toml.decode(resources.topologies()[name].read_bytes())

    jsonschema.validate(document, schema())


def test_the_schema_accepts_options_of_the_kind() -> None:
    jsonschema.validate({"endpoint": [{"name": "xor0", "kind": "xor", "stream": 1, "key": 7}]}, schema())


@pytest.mark.parametrize("kind", [kind for kind in ENDPOINTS if rows_of_options(kind)])
def test_the_page_has_the_options_of_every_kind(kind: str, checkout: Path) -> None:
    page = (checkout / "docs/topology.md").read_text()

    assert rows_of_the_page(page, f'kind = "{kind}"') == rows_of_options(kind)


@pytest.mark.row("server", 126)
@pytest.mark.parametrize(
    "document",
    [
        {"iommu": {"contexts": 0}},
        {"iommu": {"pool_pages": 3}},
        {"endpoint": [{"name": "dma0", "kind": "dma-test"}]},
        {"endpoint": [{"name": "dma0", "kind": "gpu", "stream": 1}]},
        {"endpoint": [{"name": "dma0", "kind": "dma-test", "stream": 1, "sbdf": "00:5"}]},
        {"endpoint": [{"name": "dma0", "kind": "dma-test", "stream": 1, "key": 7}]},
        {"endpoint": [{"name": "xor0", "kind": "xor", "stream": 1, "key": 256}]},
        {"endpoint": [{"name": "xor0", "kind": "xor", "stream": 1, "keys": 7}]},
        {"endpoint": [{"name": "dma0", "kind": "dma-test", "stream": 1, "reserved": [{"start": 1, "size": 4096}]}]},
        {"msi": [{"start": 0x8020000, "size": 100}]},
        {"msi": [{"start": 0x8020000}]},
        {"msi": 9 * [{"start": 0x8020000, "size": 4096}]},
    ],
)
def test_the_schema_refuses_what_the_server_refuses(document: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema())
