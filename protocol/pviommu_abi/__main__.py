"""Write the generated files of a checkout: the drivers' C headers and the ABI page."""

from __future__ import annotations

import argparse
from pathlib import Path

from .abi_page import abi_page
from .c_header import c_header
from .interface import INTERFACES


def generated_files() -> dict[str, str]:
    """The text of every generated file, by its path in the checkout."""
    files = {f"guest-tools/driver/{interface.header}": c_header(interface) for interface in INTERFACES}
    return files | {"docs/abi.md": abi_page()}


def main() -> None:
    """Command line: the checkout to write into."""
    parser = argparse.ArgumentParser(prog="python -m pviommu_abi", description=__doc__)
    parser.add_argument("checkout", type=Path, help="root folder of the checkout")
    root: Path = parser.parse_args().checkout
    for name, text in generated_files().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
        print(f"wrote {name}")


if __name__ == "__main__":
    main()
