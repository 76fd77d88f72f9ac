"""What docs/pytest.md says is so: its examples, its report, its options, its fixtures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pviommu import pytest_plugin
from pviommu.topology import EndpointSection, IommuSection, Topology

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "pytest.md").read_text(encoding="utf-8")
BLOCKS = [
    re.sub("^    ", "", block, flags=re.MULTILINE).strip("\n")
    for block in re.findall(r"(?:^(?:    .*)?\n)+", PAGE, re.MULTILINE)
]
TESTS = [block for block in BLOCKS if "def test_" in block]


def test_each_of_its_tests_is_one_of_the_examples() -> None:
    examples = "".join(path.read_text() for path in sorted((ROOT / "examples" / "pytest").glob("test_*.py")))

    assert len(TESTS) == 5
    for block in TESTS:
        assert f"{block}\n" in examples
    named = set(re.findall(r"^\(`(\w+\.py)`\)", PAGE, re.MULTILINE))
    assert named == {path.name for path in (ROOT / "examples" / "pytest").glob("test_*.py")}


def test_the_report_is_what_the_example_shows(pytester: pytest.Pytester) -> None:
    for name in ("fails.py", "second-map.toml"):
        (pytester.path / name).write_text((ROOT / "examples" / "pytest" / name).read_text())
    shown = [
        line for block in BLOCKS if "pviommu device: state" in block or "it fired never" in block for line in [block]
    ]
    lines = pytester.runpytest_inprocess("-p", "no:cacheprovider", "fails.py").stdout.str()

    assert len(shown) == 2
    for block in shown:
        assert re.search(f"^{re.escape(block).replace(re.escape('...'), '[^,]+')}$", lines, re.MULTILINE), block


def test_options_and_fixtures_are_those_of_the_plugin() -> None:
    parser = pytest.Parser(_ispytest=True)
    pytest_plugin.pytest_addoption(parser)
    options = {name for group in parser._groups for option in group.options for name in option.names()}

    assert set(re.findall(r"^\| `(--[\w-]+)", PAGE, re.MULTILINE)) == options
    fixtures = {name for name in vars(pytest_plugin) if name.startswith("pviommu_")} - {"pviommu_vm_session"}
    assert {name for name in fixtures if f"`{name}`" in PAGE or f"def {name}(" in PAGE} == fixtures


def test_its_topology_can_be_made() -> None:
    [block] = [block for block in BLOCKS if "def pviommu_topology" in block]
    found: dict[str, object] = {}
    exec(
        block,
        {"pytest": pytest, "Topology": Topology, "IommuSection": IommuSection, "EndpointSection": EndpointSection},
        found,
    )

    made = found["pviommu_topology"].__wrapped__()  # type: ignore[attr-defined]
    made.check()
    assert made.iommu.pool_pages == 64
