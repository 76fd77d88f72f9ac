"""The data files of the package: in a checkout beside device/, else inside the installed wheel."""

from __future__ import annotations

from pathlib import Path

__all__ = ["guest_tools", "qemu_configs", "scenarios", "topologies"]

_PACKAGE = Path(__file__).resolve().parent


def guest_tools(package: Path = _PACKAGE) -> Path:
    """The folder with the guest driver, the image skeleton and the guest tests. Raises FileNotFoundError."""
    return _find(package, "guest-tools")


def qemu_configs(package: Path = _PACKAGE) -> Path:
    """The folder with topologies and QEMU configuration files. Raises FileNotFoundError."""
    return _find(package, "qemu-configs")


def topologies() -> dict[str, Path]:
    """The topologies that are included, by name."""
    return {path.stem: path for path in sorted(qemu_configs().glob("*.toml"), key=lambda path: path.stem)}


def scenarios() -> dict[str, Path]:
    """The scenarios of faults that are included, by name."""
    return {path.stem: path for path in sorted((qemu_configs() / "scenarios").glob("*.toml"))}


def _find(package: Path, name: str) -> Path:
    candidates = (package.parent.parent / name, package / "data" / name)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"{name}: looked in {candidates[0]} (checkout) and {candidates[1]} (wheel)")
