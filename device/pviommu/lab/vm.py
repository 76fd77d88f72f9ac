"""Runs one virtual machine: composes QEMU's command line, reads the guest's report line by line, ends it in time."""

from __future__ import annotations

import json
import re
import shlex
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from pviommu.lab.problems import RunError, UsageError
from pviommu.lab.processes import Child
from pviommu.lab.provision import Toolbox

__all__ = ["FIRST_SLOT", "PORT_NAME", "GuestTimeoutError", "VirtualMachine", "VmConfig", "compose", "parse_memory"]

PORT_NAME = "org.pviommu.lab"
FIRST_SLOT = 0x10
"""PCI slot of the first vfio-user device; the others follow in the order of their sockets."""

_LAST_SLOT = 0x1E  # q35 has its LPC bridge in 0x1f
_SERIAL_SLOT = 0x03
_MAX_LINE = 4096
_BASE_KERNEL_ARGUMENTS = ("console=ttyS0", "panic=-1", "no_timer_check", "tsc=reliable", "mitigations=off")


class GuestTimeoutError(Exception):
    """The guest did not finish within its time."""


@dataclass(frozen=True, slots=True)
class VmConfig:
    """One machine. ``memory`` is in bytes; ``sockets`` are vfio-user servers that already listen."""

    initrd: Path
    console_log: Path
    qemu_log: Path
    accelerator: str
    memory: int = 5 << 30
    vcpus: int = 1
    sockets: Sequence[Path] = ()
    kernel_arguments: Sequence[str] = ("iommu.forcedac=1", "loglevel=6")
    machine_options: str = ""
    qmp_socket: Path | None = None
    extra_arguments: Sequence[str] = field(default_factory=tuple)


def parse_memory(text: str) -> int:
    """Bytes from ``5G`` or ``512M``. Raises UsageError."""
    match = re.fullmatch(r"(\d{1,6})([MG])i?B?", text, re.IGNORECASE)
    size = int(match[1]) << (20 if match[2].upper() == "M" else 30) if match else 0
    if size < 128 << 20:
        raise UsageError(f"--memory {text}: give at least 128M, as a number followed by M or G")
    return size


def compose(toolbox: Toolbox, config: VmConfig, port: int) -> list[str]:
    """The whole QEMU command; ``port`` is the descriptor of the connected socket that carries the report."""
    if FIRST_SLOT + len(config.sockets) - 1 > _LAST_SLOT:
        limit = _LAST_SLOT - FIRST_SLOT + 1
        raise UsageError(f"{len(config.sockets)} vfio-user devices: the machine has room for {limit}")
    options = f",{config.machine_options}" if config.machine_options else ""
    command = [
        *toolbox.qemu_command,
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        # vfio-user servers reach guest memory only through descriptors, so it must be a shared file.
        *("-object", f"memory-backend-memfd,id=ram,size={config.memory},share=on"),
        *("-machine", f"q35,memory-backend=ram{options}"),
        *("-accel", config.accelerator, "-m", f"{config.memory >> 20}M", "-smp", str(config.vcpus)),
        *("-kernel", str(toolbox.kernel_image), "-initrd", str(config.initrd)),
        *("-append", " ".join((*_BASE_KERNEL_ARGUMENTS, *config.kernel_arguments))),
        *("-chardev", f"file,id=console,path={_escape(config.console_log)}", "-serial", "chardev:console"),
        *config.extra_arguments,
        *("-chardev", f"socket,id=lab,fd={port}"),
        *("-device", f"virtio-serial-pci,id=serial,addr={_SERIAL_SLOT:#x}"),
        *("-device", f"virtserialport,bus=serial.0,chardev=lab,name={PORT_NAME}"),
    ]
    if config.accelerator == "kvm":
        command += ["-cpu", "host"]
    if config.qmp_socket is not None:
        command += ["-qmp", f"unix:{_escape(config.qmp_socket)},server=on,wait=off"]
    for slot, path in enumerate(config.sockets, start=FIRST_SLOT):
        device = {
            "driver": "vfio-user-pci",
            "addr": f"{slot:#x}",
            "socket": {"type": "unix", "path": str(path)},
        }
        command += ["-device", json.dumps(device)]
    return command


def _escape(path: Path) -> str:
    return str(path).replace(",", ",,")  # QEMU's own quoting in option lists


class VirtualMachine:
    """A running machine; a context manager that leaves no process behind.

    The guest's report is read with :meth:`lines`; it ends when QEMU ends.
    """

    def __init__(self, toolbox: Toolbox, config: VmConfig) -> None:
        self._toolbox = toolbox
        self._config = config
        self._buffer = b""
        self._port, self._far_port = socket.socketpair()
        self._child = Child()
        self.command = compose(toolbox, config, self._far_port.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def command_line(self) -> str:
        """The command as one would type it; the report's descriptor is the only thing to replace."""
        words = [f"{name}={value}" for name, value in self._toolbox.qemu_environment.items()]
        return " ".join([*(shlex.quote(word) for word in words), shlex.join(self.command)])

    def start(self) -> None:
        """Start QEMU. Raises RunError when the program cannot be started."""
        try:
            with self._config.qemu_log.open("wb") as log:
                self._child.start(
                    self.command,
                    output=log,
                    pass_fds=(self._far_port.fileno(),),
                    environment=self._toolbox.qemu_environment,
                )
        except OSError as problem:
            raise RunError(f"QEMU does not start: {self.command[0]}: {problem.strerror}") from problem
        finally:
            self._far_port.close()

    def lines(self, deadline: float) -> Iterator[str]:
        """Lines of the guest's report until QEMU ends.

        ``deadline`` is a time of ``time.monotonic``. Raises GuestTimeoutError at the deadline, RunError if QEMU fails.
        """
        while True:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise GuestTimeoutError
            self._port.settimeout(remaining)
            try:
                data = self._port.recv(65536)
            except TimeoutError:
                raise GuestTimeoutError from None
            except ConnectionResetError:
                data = b""
            yield from self._split(data)
            if not data:
                break
        self._finish(deadline)

    def send(self, line: str) -> None:
        """Send one line to the guest, over the channel of its report. Raises RunError if QEMU is gone."""
        try:
            self._port.sendall(line.encode() + b"\n")
        except OSError as problem:
            raise RunError(f"QEMU does not take a line for the guest: {problem.strerror}") from problem

    def kill(self) -> None:
        """End QEMU at once, if it still runs, and release what belongs to it."""
        self._child.stop(grace=1.0)
        self._port.close()
        self._far_port.close()

    def _split(self, data: bytes) -> Iterator[str]:
        self._buffer += data
        *whole, self._buffer = self._buffer.split(b"\n")
        if len(self._buffer) > _MAX_LINE or (not data and self._buffer):
            whole.append(self._buffer)
            self._buffer = b""
        for line in whole:
            yield line[:_MAX_LINE].decode(errors="replace")

    def _finish(self, deadline: float) -> None:
        status = self._child.wait(max(0.0, deadline - time.monotonic()))
        if status is None:
            raise GuestTimeoutError
        if status != 0:
            lines = self._config.qemu_log.read_text(errors="replace").strip().splitlines()
            said = lines[-1] if lines else "it said nothing"
            raise RunError(f"QEMU ended with status {status}: {said}", "\n".join(lines[-20:]))
