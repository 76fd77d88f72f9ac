"""``python -m pviommu.schemas``: writes the schemas of topology and scenario files as the code has them now."""

from __future__ import annotations

import json

from .. import topology
from ..faults import scenario
from . import paths

if __name__ == "__main__":
    for name, made in (("topology", topology.schema()), ("scenario", scenario.schema())):
        paths()[name].write_text(json.dumps(made, indent=2) + "\n")
