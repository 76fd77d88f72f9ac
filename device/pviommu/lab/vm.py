"""Runs one virtual machine: composes QEMU's command line, reads the guest's report line by line, ends QEMU in time."""

from __future__ import annotations

import json
import math
import re
import shlex
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from .output import PORT_NAME as OUTPUT_PORT_NAME
from .problems import RunError, UsageError
from .processes import Child, Run, run
from .provision import Toolbox

__all__ = [
    "FIRST_SLOT",
    "KERNEL_ARGUMENTS",
    "PORT_NAME",
    "Alarm",
    "GuestTimeoutError",
    "VirtualMachine",
    "VmConfig",
    "compose",
    "nic_backend",
    "parse_memory",
]

PORT_NAME = "org.pviommu.lab"
FIRST_SLOT = 0x10
"""PCI slot of the first vfio-user device, or of the root port above it; the others follow in the order of their
sockets.
"""

KERNEL_ARGUMENTS = ("iommu.forcedac=1", "loglevel=6")
"""The default kernel arguments: device addresses above 4 GiB first, notices on the console."""

_LAST_SLOT = 0x1E  # where q35 and virt have room: q35 has its LPC bridge in 0x1f
_SERIAL_SLOT = 0x03
_NIC_SLOT = 0x04
_MAX_LINE = 4096
# An emulated processor needs a sixth of the boot for the tests of cryptomgr.
_BASE_KERNEL_ARGUMENTS = ("panic=-1", "mitigations=off", "cryptomgr.notests")


class GuestTimeoutError(Exception):
    """The guest did not finish within its time."""


class Alarm(Protocol):
    """Something that the reader of the guest's report is to do at a certain time."""

    @property
    def due(self) -> float | None:
        """The time, of ``time.monotonic``; None: never."""

    def ring(self) -> None:
        """Called once it is due."""


@dataclass(frozen=True, slots=True)
class VmConfig:
    """One machine. ``memory`` is in bytes; ``sockets`` are vfio-user servers that already listen.

    Each socket of ``behind_ports`` gets a PCIe root port of its own, the others are on the root bus. ``nic`` is the
    back end of a virtio NIC beside them, as :func:`nic_backend` gives it; None: the machine has no NIC. With
    ``console_socket`` the console can be reached through that socket, besides being logged; with ``gdb_socket`` QEMU
    waits there for a debugger before the guest's first instruction. ``output`` is the descriptor of a connected socket
    that gets what a program in the guest writes to a port of its own.
    """

    initrd: Path
    console_log: Path
    qemu_log: Path
    accelerator: str
    memory: int = 5 << 30
    vcpus: int = 1
    sockets: Sequence[Path] = ()
    behind_ports: Collection[Path] = ()
    nic: str | None = None
    kernel_arguments: Sequence[str] = KERNEL_ARGUMENTS
    machine_options: str = ""
    qmp_socket: Path | None = None
    console_socket: Path | None = None
    gdb_socket: Path | None = None
    output: int | None = None
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
    architecture = toolbox.architecture
    arguments = (f"console={architecture.console}", *architecture.arguments, *_BASE_KERNEL_ARGUMENTS)
    command = [
        *toolbox.qemu_command,
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        # vfio-user servers reach guest memory only through descriptors, so it must be a file that is shared.
        *("-object", f"memory-backend-memfd,id=ram,size={config.memory},share=on"),
        *("-machine", f"{architecture.machine},memory-backend=ram{options}"),
        *("-accel", config.accelerator, "-m", f"{config.memory >> 20}M", "-smp", str(config.vcpus)),
        *("-kernel", str(toolbox.kernel_image), "-initrd", str(config.initrd)),
        *("-append", " ".join((*arguments, *config.kernel_arguments))),
        *("-chardev", _console(config), "-serial", "chardev:console"),
        *config.extra_arguments,
        *("-chardev", f"socket,id=lab,fd={port}"),
        *("-device", f"virtio-serial-pci,id=serial,addr={_SERIAL_SLOT:#x}"),
        *("-device", f"virtserialport,bus=serial.0,chardev=lab,name={PORT_NAME}"),
    ]
    if config.output is not None:
        command += ["-chardev", f"socket,id=output,fd={config.output}"]
        command += ["-device", f"virtserialport,bus=serial.0,chardev=output,name={OUTPUT_PORT_NAME}"]
    if config.accelerator == "kvm":
        command += ["-cpu", "host"]
    elif architecture.processor:
        command += ["-cpu", architecture.processor]
    if config.qmp_socket is not None:
        command += ["-qmp", f"unix:{_escape(config.qmp_socket)},server=on,wait=off"]
    if config.gdb_socket is not None:
        command += ["-chardev", f"socket,id=gdb,path={_escape(config.gdb_socket)},server=on,wait=off"]
        command += ["-gdb", "chardev:gdb", "-S"]
    if config.nic is not None:
        # Without romfile= QEMU wants a boot ROM that a private root may not have.
        command += ["-netdev", config.nic]
        command += ["-device", f"virtio-net-pci,netdev=net,romfile=,addr={_NIC_SLOT:#x}"]
    for slot, path in enumerate(config.sockets, start=FIRST_SLOT):
        command += _function(slot, path, behind_port=path in config.behind_ports)
    return command


def nic_backend(toolbox: Toolbox, run: Run = run) -> str:
    """The back end for the NIC of a machine: QEMU's user network, closed to the outside, if this QEMU has it, else a
    hub with nothing else on it.
    """
    command = ["env", *(f"{name}={value}" for name, value in toolbox.qemu_environment.items()), *toolbox.qemu_command]
    offered = run([*command, "-machine", "none", "-netdev", "help"]).output.split()
    return "user,id=net,restrict=on" if "user" in offered else "hubport,id=net,hubid=0"


def _console(config: VmConfig) -> str:
    log = _escape(config.console_log)
    if config.console_socket is None:
        return f"file,id=console,path={log}"
    return f"socket,id=console,path={_escape(config.console_socket)},server=on,wait=off,logfile={log}"


def _function(slot: int, path: Path, *, behind_port: bool) -> list[str]:
    """The options of one vfio-user device; ``slot`` is the device's on the root bus, or its root port's."""
    place = {"addr": f"{slot:#x}"}
    port = []
    if behind_port:
        place = {"bus": f"port{slot:x}", "addr": "0x0"}
        port = ["-device", f"pcie-root-port,id={place['bus']},chassis={slot},slot={slot},addr={slot:#x}"]
    device = {"driver": "vfio-user-pci", **place, "socket": {"type": "unix", "path": str(path)}}
    return [*port, "-device", json.dumps(device)]


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
        """The command as one would type it, but for the report's descriptor."""
        words = [f"{name}={value}" for name, value in self._toolbox.qemu_environment.items()]
        return " ".join([*(shlex.quote(word) for word in words), shlex.join(self.command)])

    @property
    def pid(self) -> int:
        """QEMU's process. Raises ProcessLookupError if it is not running."""
        return self._child.pid

    @property
    def report(self) -> int:
        """Descriptor of the guest's report, for whoever reads on after :meth:`lines`."""
        return self._port.fileno()

    def start(self) -> None:
        """Start QEMU. Raises RunError when the program cannot be started."""
        try:
            with self._config.qemu_log.open("wb") as log:
                self._child.start(
                    self.command,
                    output=log,
                    pass_fds=[port for port in (self._far_port.fileno(), self._config.output) if port is not None],
                    environment=self._toolbox.qemu_environment,
                )
        except OSError as problem:
            raise RunError(f"QEMU does not start: {self.command[0]}: {problem.strerror}") from problem
        finally:
            self._far_port.close()

    def lines(self, deadline: float, alarm: Alarm | None = None) -> Iterator[str]:
        """Lines of the guest's report until QEMU ends; rings ``alarm`` whenever it is due.

        ``deadline`` is a time of ``time.monotonic``. Raises GuestTimeoutError at the deadline, RunError if QEMU fails.
        """
        while True:
            due = deadline
            if alarm is not None and alarm.due is not None:
                if alarm.due <= time.monotonic():
                    alarm.ring()
                    continue
                due = min(due, alarm.due)
            data = self._receive(due, deadline)
            if data is None:
                continue
            yield from self._split(data)
            if not data:
                break
        self._finish(deadline)

    def send(self, line: str) -> None:
        """Send one line to the guest, over the channel of its report. Raises RunError if QEMU is gone."""
        try:
            self._port.sendall(line.encode() + b"\n")
        except OSError as problem:
            raise RunError(f"QEMU does not accept a line for the guest: {problem.strerror}") from problem

    def pause(self) -> None:
        """Stop QEMU with all its threads (SIGSTOP). Raises ProcessLookupError if it is gone."""
        self._child.pause()

    def resume(self) -> None:
        """Let a stopped QEMU go on. Raises ProcessLookupError if it is gone."""
        self._child.resume()

    def kill(self) -> None:
        """End QEMU at once, if it still runs, and release what belongs to it."""
        self._child.stop(grace=1.0)
        self._port.close()
        self._far_port.close()

    def _receive(self, due: float, deadline: float) -> bytes | None:
        """What came of the report, empty at its end; None if nothing did until ``due``."""
        now = time.monotonic()
        if now >= deadline:
            raise GuestTimeoutError
        # A due time that has just passed would be a negative timeout, and 0 would make the socket non-blocking.
        self._port.settimeout(max(min(due, deadline) - now, 0.001) if math.isfinite(due) else None)
        try:
            return self._port.recv(65536)
        except TimeoutError:
            return None
        except ConnectionResetError:
            return b""

    def _split(self, data: bytes) -> Iterator[str]:
        self._buffer += data
        *whole, self._buffer = self._buffer.split(b"\n")
        if len(self._buffer) > _MAX_LINE or (not data and self._buffer):
            whole.append(self._buffer)
            self._buffer = b""
        for line in whole:
            yield line[:_MAX_LINE].decode(errors="replace")

    def _finish(self, deadline: float) -> None:
        status = self._child.wait(max(0.0, deadline - time.monotonic()) if math.isfinite(deadline) else None)
        if status is None:
            raise GuestTimeoutError
        if status != 0:
            lines = self._config.qemu_log.read_text(errors="replace").strip().splitlines()
            said = lines[-1] if lines else "it printed nothing"
            raise RunError(f"QEMU ended with status {status}: {said}", "\n".join(lines[-20:]))
