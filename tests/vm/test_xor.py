"""The example of docs/add-an-endpoint.md in a real guest, driven by a program in user space."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .conftest import PLAIN

if TYPE_CHECKING:
    from conftest import Command

LIMIT = 180
TRANSPORTS = {"vfio-user": (), "libvfio-user": PLAIN}
"""Each with options of the lab."""


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_program_of_user_space_has_its_buffer_xored_with_the_key_of_the_topology(
    command: Command, artefacts: Path, checkout: Path, transport: str
) -> None:
    script = str(checkout / "guest-tools/programs/xor.sh")

    options = ("--topology", "xor", "--run", script, "--transport", transport, *TRANSPORTS[transport])
    run = command.run(artefacts / f"xor-{transport}", LIMIT, *options)

    said = (run.folder / "program.out").read_text()
    assert run.status == 0, said + run.output[-2000:]
    assert said.splitlines()[0] == "key 7"
    assert (said.count("\nok   "), said.count("FAIL")) == (7, 0)
    assert run.results["counts"]["faults"] == 3
    assert ("libvfio-user" in run.results["versions"]) == (transport == "libvfio-user")
