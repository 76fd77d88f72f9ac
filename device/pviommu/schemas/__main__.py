"""``python -m pviommu.schemas``: writes the schema of topology files as the code has it now."""

from __future__ import annotations

import json

from ..topology import schema
from . import paths

if __name__ == "__main__":
    paths()["topology"].write_text(json.dumps(schema(), indent=2) + "\n")
