"""The figures of each boot, kept in its folder, so that an interrupted run can be resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..host_errors import write_whole
from ..lab.problems import UsageError
from .guest import Boot, Round, VfioMaps, Witness

__all__ = ["check_setting", "keep", "kept"]

_BOOT = "boot.json"
_SETTING = "setting.json"


def keep(folder: Path, boot: Boot, counts: Mapping[str, Any]) -> None:
    """Save the figures of the boot in ``folder``, and the server's own counts."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / _BOOT, json.dumps({"boot": asdict(boot), "counts": dict(counts)}) + "\n")


def kept(folder: Path) -> tuple[Boot, dict[str, Any]] | None:
    """What :func:`keep` saved there; None if that boot did not finish."""
    try:
        found = json.loads((folder / _BOOT).read_text())
    except FileNotFoundError:
        return None
    boot = Boot(**found["boot"])
    boot.rounds = [Round(**entry) for entry in found["boot"]["rounds"]]
    boot.witnesses = [Witness(**entry) for entry in found["boot"]["witnesses"]]
    boot.vfio = [VfioMaps(**entry) for entry in found["boot"]["vfio"]]
    return boot, found["counts"]


def check_setting(folder: Path, setting: Mapping[str, Any]) -> None:
    """Note in ``folder`` what is measured there. Raises UsageError if it has figures of something else."""
    path = folder / _SETTING
    text = json.dumps(setting, indent=2, sort_keys=True) + "\n"
    if not path.exists():
        write_whole(path, text)
        return
    before, now = json.loads(path.read_text()), json.loads(text)
    different = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    if different:
        raise UsageError(f"--resume {folder}: measured with another {', '.join(different)}")
