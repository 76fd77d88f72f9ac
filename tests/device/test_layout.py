"""The walls of ``docs/layout.md``: which part of the device may import which."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "device" / "pviommu"

MAY_IMPORT = {
    "guest": set(),
    "reports": set(),
    "engine": set(),
    "dma": {"engine", "inputs", "counters"},
    "pci": {"dma", "hosted", "inputs", "counters", "probes"},
    "virtio": {"dma", "pci"},
    "net": {"hosted", "inputs", "process_status"},
    "endpoints": {"net", "virtio", "dma", "pci", "hosted", "inputs"},
    "history": {"engine", "probes"},
    "interfaces": {"engine", "dma", "pci", "history", "hosted", "inputs", "counters", "probes"},
    "transports": {"pci", "hosted", "inputs", "process_status"},
    "native": {"engine", "interfaces", "pci", "hosted", "inputs", "cache", "exit_status"},
    "control": {
        "faults",
        "documents",
        "toml_places",
        "transports",
        "history",
        "engine",
        "hosted",
        "inputs",
        "counters",
        "exit_status",
        "host_errors",
        "__version__",
    },
    "host": {"transports", "dma", "pci", "hosted", "inputs", "counters"},
    "machine": {"endpoints", "interfaces", "engine", "dma", "pci", "hosted", "inputs", "counters", "topology"},
    "snapshot": {"machine"},
    "hosted": {"inputs"},
    "faults": {"interfaces", "engine", "dma", "hosted", "inputs", "documents", "probes", "resources", "toml_places"},
}
"""Packages and modules of the device, and which others each of them may use."""


def imported(file: Path) -> Iterator[str]:
    """The parts of ``pviommu`` that a file imports."""
    package = ("pviommu", *file.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = [*base, *(node.module.split(".") if node.module else [])]
            modules = [[*module, alias.name] for alias in node.names]
        else:
            continue
        yield from (module[1] for module in modules if module[0] == "pviommu" and len(module) > 1)


def uses(part: str) -> set[str]:
    files = (ROOT / part).rglob("*.py") if (ROOT / part).is_dir() else [ROOT / f"{part}.py"]
    return {name for file in files for name in imported(file)} - {part}


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_a_part_imports_only_what_it_may(part: str) -> None:
    assert uses(part) <= MAY_IMPORT[part]


def test_every_package_of_the_device_has_its_walls() -> None:
    tools = {"bench", "differential", "lab", "process", "scenarios", "schemas", "selfcheck", "testing", "topologies"}
    tools |= {"vfio_run"}

    packages = {file.parent.name for file in ROOT.glob("*/__init__.py")}
    assert packages - tools <= set(MAY_IMPORT)


def test_imports_within_the_device_are_relative() -> None:
    absolute = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "pviommu"
    ]
    assert absolute == []


PUBLIC_BY_NAME = ("engine", "pviommu_abi", "endpoints/template.py", "endpoints/xor.py")
"""Where every name without an underscore is for other modules."""


def test_modules_say_what_others_may_use() -> None:
    """By ``__all__``, but for :data:`PUBLIC_BY_NAME`, and modules that are run or define nothing."""
    missing = []
    for root in (ROOT, ROOT.parents[1] / "protocol"):
        for file in root.rglob("*.py"):
            place = file.relative_to(root).as_posix()
            tree = ast.parse(file.read_text(encoding="utf-8"))
            if place.startswith(PUBLIC_BY_NAME) or file.name == "__main__.py" or not ast.unparse(tree.body[1:]):
                continue
            targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
            names = {target.id for target in targets if isinstance(target, ast.Name)}
            if "__all__" not in names and file != ROOT / "__init__.py":
                missing.append(place)
    assert missing == []


def test_the_page_has_one_row_for_each_place() -> None:
    page = (ROOT.parents[1] / "docs" / "layout.md").read_text(encoding="utf-8")
    first = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| `")]

    assert first
    assert {cell for cell in first if first.count(cell) > 1} == set()
