"""Two joined network cards in a real guest, with the kernel's own driver: ping and TCP through the PV-IOMMU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Command

LIMIT = 180
PAGES_OF_A_FILE = 16 << 20 >> 12
"""what ``net.sh`` sends in each direction"""


def test_packets_of_the_kernels_own_driver_go_through_the_iommu(
    command: Command, artefacts: Path, checkout: Path
) -> None:
    script = str(checkout / "guest-tools/programs/net.sh")

    run = command.run(artefacts / "net", LIMIT, "--topology", "net", "--run", script)

    said = (run.folder / "program.out").read_text()
    assert run.status == 0, said + run.output[-2000:]
    assert (said.count("ok   "), said.count("FAIL")) == (10, 0), said
    counts = run.results["counts"]
    assert counts["faults"] == 0
    assert counts["pages_mapped"] > 2 * PAGES_OF_A_FILE  # by the sender and by the receiver, in both directions
    assert counts["dma_bytes"] > 2 * 2 * (16 << 20)
    assert counts["traps"] < counts["ops"]["map_pages"] / 2  # most packets need no notification
