"""Commands that play scenarios, ended by a signal, leave nothing behind."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest

from pviommu.cli import main
from pviommu.faults.engine import Faults


@pytest.mark.parametrize("words", [["run", "cached-entry-corrupted"], ["sweep", "--quiet"]])
def test_sigterm_ends_them_like_ctrl_c(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def asked(*_: Any) -> None:
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # which would end the tests
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Faults, "ask", asked)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    assert main(["faults", *words]) == 130
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before
