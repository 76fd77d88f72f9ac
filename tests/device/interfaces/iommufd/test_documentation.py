"""The example of docs/vfio-user-space.md."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest


def test_the_example_runs_as_it_says(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (checkout / "docs" / "vfio-user-space.md").read_text(encoding="utf-8")
    section = text.split("## An example\n")[1].split("\n`ioctl(")[0]

    exec(compile(textwrap.dedent(section), "vfio-user-space.md", "exec"), {})

    refused, error = capsys.readouterr().out.splitlines()
    assert refused in text
    assert error == "[Errno 2] unmap 0x2000..0x3fff of IOAS 2: nothing is mapped there"
