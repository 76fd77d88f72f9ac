"""``python -m pviommu.scenarios PAGE...``: write the tables of ``docs/faults*.md`` as the code has them now."""

from __future__ import annotations

import sys
from pathlib import Path

from .tables import renewed

if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
