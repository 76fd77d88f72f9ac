"""The settings of one guest: how its IOMMU driver is loaded, how its kernel maps, and how much it tests.

The guest's scripts source ``/lab/config``; the mode is also a kernel argument, because the IOMMU core reads it before
any script runs.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = [
    "ARM64_KERNELS",
    "CONFIG_PATH",
    "KERNELS",
    "MODES",
    "OWN_KERNEL",
    "PROFILES",
    "SUITES",
    "TABLES",
    "GuestSettings",
    "kernel_name",
]

CONFIG_PATH = "/lab/config"
"""Where the guest finds its settings."""

KERNELS = ("debian", "debian-7", "lab", "lab-debug")
"""Kernels that the lab provides by name, for guests of this host's architecture."""

ARM64_KERNELS = ("debian", "debian-7", "debian-16k", "lab-64k")
"""The same for guests of arm64; two are named after the size of their pages, the others have 4 KiB."""

OWN_KERNEL = "own"
"""The name that a kernel given by its path has in the guest."""

PROFILES = ("xen-2024", "xen-v7")

TABLES = ("auto", "on", "off")
"""The values of the driver's parameter ``tables``: whether the tables of its domains are the guest's."""

SUITES = ("vfio",)
"""Other people's tests that the guest can run instead of its own: the kernel's tools/testing/selftests/NAME."""

MODES = {"lazy": "iommu.strict=0", "strict": "iommu.strict=1", "passthrough": "iommu.passthrough=1"}
"""How the DMA API maps (Documentation/admin-guide/kernel-parameters.txt, iommu.strict and iommu.passthrough)."""


def kernel_name(kernel: str) -> str:
    """The name of ``kernel``, an argument of ``--kernel``."""
    return kernel if kernel in (*KERNELS, *ARM64_KERNELS) else OWN_KERNEL


@dataclass(frozen=True, slots=True)
class GuestSettings:
    """One choice for each of the lab's axes. ``long`` adds the tests that take more than a few seconds; with ``keep``
    the guest ends in a shell on its console instead of powering off. ``cycles`` is how often its drivers are unloaded
    and loaded, None as often as ``long`` says. ``isolated_msi``: the machine's interrupts are such that VFIO asks for
    no decision. ``program``, the name of a file that the user has added, or ``suite`` is run instead of the guest's own
    tests. ``tables`` is the parameter of the driver.

    ``scenario`` is the name of a scenario of faults. It is played after all other tests or, with ``scenario_alone``,
    instead of them; ``scenario_from`` says whether its rules are loaded from the guest's ``boot`` on. With ``sweep``
    the guest works for one rule after the other instead; then its kernel ends at once when it has come to harm.
    """

    profile: str = PROFILES[0]
    mode: str = "lazy"
    vcpus: int = 1
    kernel: str = KERNELS[0]
    long: bool = False
    keep: bool = False
    program: str = ""
    suite: str = ""
    scenario: str = ""
    scenario_alone: bool = False
    scenario_from: str = "tests"
    sweep: bool = False
    cycles: int | None = None
    isolated_msi: bool = False
    tables: str = TABLES[0]

    @property
    def kernel_arguments(self) -> tuple[str, ...]:
        """The arguments that make the kernel do as the settings say."""
        return (MODES[self.mode], *(("oops=panic",) if self.sweep else ()))

    def config(self, more: Mapping[str, str] | None = None) -> bytes:
        """The text of ``/lab/config``: assignments of a POSIX shell, those of ``more`` after the settings."""
        values = {
            "profile": self.profile,
            "tables": self.tables,
            "mode": self.mode,
            "vcpus": str(self.vcpus),
            "kernel": self.kernel,
            "long": str(int(self.long)),
            "keep": str(int(self.keep)),
            **{name: value for name, value in (("program", self.program), ("suite", self.suite)) if value},
            **({"cycles": str(self.cycles)} if self.cycles else {}),
            **self._of_scenario(),
            **({"sweep": "1"} if self.sweep else {}),
            **({"isolated_msi": "1"} if self.isolated_msi else {}),
            **(more or {}),
        }
        return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items()).encode()

    def _of_scenario(self) -> dict[str, str]:
        """Of what is not as usual, what the guest must know."""
        values = {"scenario": self.scenario, "scenario_alone": "1" if self.scenario_alone else ""}
        if self.scenario_from != "tests":
            values["scenario_from"] = self.scenario_from
        return {name: value for name, value in values.items() if value}
