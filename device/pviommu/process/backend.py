"""The process behind ``pviommu serve``: a machine, its sockets and the loop, from start to summary."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..cache import CacheError
from ..counters import Counters
from ..host.descriptors import DescriptorsError, check_count, raise_limit, share_out
from ..host.loop import Loop
from ..host.pacing import Pace, naps_end_in_time
from ..host.server import Server, Transport
from ..inputs import Inputs, LiveInputs
from ..interfaces.pv.ring_core import DeviceCore
from ..interfaces.smmuv3.config import MissingCoreError
from ..machine import Machine
from ..pci.function import Environment
from ..probes import Probes
from ..topology import Topology
from ..transports.listening import close_all, listen_all
from .event_file import EventFile
from .pidfile import PidFile, PidFileError
from .service_manager import notify

if TYPE_CHECKING:
    from ..faults.engine import Faults
    from ..faults.scenario import Scenario
    from ..faults.verdict import Verdict
    from .controlled import Controlled

__all__ = ["BackendError", "Settings", "run"]

log = logging.getLogger(__name__)


class BackendError(Exception):
    """The environment does not allow it; the text says why."""


@dataclass(frozen=True)
class Settings:
    """How to serve a topology."""

    socket_dir: Path
    given: Mapping[str, int]
    """descriptors of sockets by name of function; the others get one in ``socket_dir``"""
    core: str
    """``native``, ``python``, or ``auto`` for the native one if it was built"""
    pace: Pace
    pidfile: Path | None
    """there once all sockets listen, removed at the end"""
    socket_mode: int = 0o600
    """permissions of the sockets in ``socket_dir``"""
    socket_group: int | None = None
    """their group's number; the process's own if not given"""
    scenario: Scenario | None = None
    """what goes wrong"""
    events: Path | None = None
    """where the events of the scenario go, if not into the log"""
    on_hangup: Callable[[], None] | None = None
    """what SIGHUP does; without one it ends the server"""
    control: Path | None = None
    """control socket"""
    control_mode: int = 0o600
    history: int = 0
    """operations kept; 0: none"""
    profiles: tuple[str, ...] = ()
    """what a guest may select, for those who ask"""
    ends_process: bool = False
    """nothing comes afterwards but the end of the process, which further signals must not change"""
    behind_library: bool = False
    """by libvfio-user, which makes its sockets itself; none are given then"""


def run(topology: Topology, settings: Settings) -> Verdict | None:
    """Serve ``topology`` until SIGTERM or SIGINT. What came of the scenario, if there is one. Raises
    :class:`BackendError`.
    """
    with contextlib.ExitStack() as stack:
        core = _core(settings.core)
        counters, inputs = Counters(), LiveInputs()
        faults = _faults(settings, inputs, stack) if settings.scenario or settings.control else None
        probes = Probes(interposer=faults)
        machine = _build(topology, Environment(inputs, counters, probes), core)
        return _run(machine, topology, faults, settings)


def _faults(settings: Settings, inputs: Inputs, stack: contextlib.ExitStack) -> Faults:
    """The rules of the scenario; without one none so far. Raises :class:`BackendError`."""
    from ..faults.engine import Faults  # only what is asked for costs start-up time
    from ..faults.scenario import Scenario

    scenario, events = settings.scenario or Scenario(), settings.events
    if not events:
        return Faults(scenario, inputs, _log_event)
    try:
        file = stack.enter_context(EventFile(events))
    except OSError as error:
        raise BackendError(f"--events {events}: {error.strerror}") from error
    return Faults(scenario, inputs, file.write)


def _log_event(line: str) -> None:
    event = json.loads(line)
    extra = {"event": "rule-fired", "fields": {key: event[key] for key in ("rule", "on", "action")}}
    log.info("rule %s: %s at %s", event["rule"], event["action"], event["on"], extra=extra)


def _run(machine: Machine, topology: Topology, faults: Faults | None, settings: Settings) -> Verdict | None:
    counters, inputs = machine.counters, machine.inputs
    sockets: Mapping[str, socket.socket] = {}
    try:
        if settings.behind_library:
            server = Server(machine, {}, inputs, settings.pace, _behind_library(machine, settings))
        else:
            sockets = listen_all(
                machine, settings.socket_dir, settings.given, settings.socket_mode, settings.socket_group
            )
            server = Server(machine, sockets, inputs, settings.pace)
    except OSError as error:
        machine.close()
        raise BackendError(f"cannot listen on {error.filename or 'a socket'}: {error.strerror}") from error
    except BackendError:
        machine.close()
        raise
    controlled = _controlled(server, machine, settings, faults) if settings.control or settings.history else None
    if faults:
        faults.serve(server.loop)
        faults.hang_up = server.transport.hang_up
    verdict = None
    pidfile = PidFile(settings.pidfile) if settings.pidfile else None
    with server.stopped_by_signals(settings.on_hangup, ends_process=settings.ends_process):  # and leave no files
        try:
            if controlled and settings.control:
                _control(controlled, topology, settings, settings.control)
            _serve(server, machine, pidfile, "libvfio-user" if settings.behind_library else "")
        except PidFileError as error:
            raise BackendError(str(error)) from error
        finally:
            if controlled:
                controlled.close()
            if faults and faults.has_begun:
                verdict = faults.finish()
            server.close()
            usage = machine.iommu.engine.usage()  # of a machine without clients: anything left is a leak
            close_all(sockets)
            machine.close()
            if pidfile:
                pidfile.remove()
    _log_summary(counters, {"contexts": usage.domains, "pool_pages_used": usage.pool_pages_used})
    return verdict


def _behind_library(machine: Machine, settings: Settings) -> Callable[[Loop], Transport]:
    """Raises :class:`BackendError`; what is returned raises OSError."""
    from libvfio_user import ArgumentError, LibraryError  # only what is asked for costs start-up time

    from ..c_library import find
    from ..transports.behind_libvfio_user import LibvfioUser

    try:
        library = find()
    except (LibraryError, CacheError) as error:
        raise BackendError(str(error)) from error

    def serve(loop: Loop) -> LibvfioUser:
        made = LibvfioUser(loop, library)
        try:
            for function in machine.functions():
                path = settings.socket_dir / f"{function.name}.sock"
                made.serve(path, function, settings.socket_mode, settings.socket_group)
        except BaseException as error:
            made.close()
            if isinstance(error, ArgumentError):
                raise BackendError(str(error)) from error
            raise
        return made

    return serve


def _controlled(server: Server, machine: Machine, settings: Settings, faults: Faults | None) -> Controlled:
    from .controlled import Controlled  # only what is asked for costs start-up time

    return Controlled(server, machine, settings.history, faults)


def _control(controlled: Controlled, topology: Topology, settings: Settings, path: Path) -> None:
    try:
        controlled.listen(path, settings.control_mode, settings.socket_group, topology.kinds(), settings.profiles)
    except OSError as error:
        raise BackendError(f"cannot listen on {error.filename or path}: {error.strerror}") from error


def _build(topology: Topology, environment: Environment, core: DeviceCore | None) -> Machine:
    """The machine, whose clients may open no more files than there are. Raises :class:`BackendError`."""
    try:
        limit = raise_limit()
        check_count(len(topology.names()), limit)
        machine = Machine.build(topology, environment, core)
        functions = list(machine.functions())
        files = share_out(functions, limit)
    except (DescriptorsError, MissingCoreError) as error:
        raise BackendError(str(error)) from error
    except OSError as error:
        raise BackendError(f"the functions of the topology cannot be made: {error.strerror}") from error
    for function in functions:
        function.memory.policy.max_files = files
    return machine


def _core(name: str) -> DeviceCore | None:
    """A core by name, ``None`` for Python's. Raises :class:`BackendError`."""
    if name == "python":
        return None
    from ..native.build import LibraryError, NotBuiltError  # only what is asked for costs start-up time
    from ..native.core import native_core

    try:
        return native_core()
    except LibraryError as error:
        if name == "native":
            raise BackendError(f"--core native: {error}") from error
        if not isinstance(error, NotBuiltError):  # of that, the line that says "listening" is enough
            log.warning("the slower Python core is used: %s", error, extra={"event": "slower-core"})
        return None


def _serve(
    server: Server,
    machine: Machine,
    pidfile: PidFile | None,
    library: str,
) -> None:
    naps_end_in_time()
    if pidfile:
        pidfile.make()
    name = machine.iommu.engine.core_name
    text = f"listening on {', '.join(sorted(function.name for function in machine.functions()))}, {name} core"
    if library:
        text += f", behind {library}: for trusted clients only"
    log.info("%s", text, extra={"event": "listening", "fields": {"core": name}})
    notify("READY=1", f"STATUS={text}")
    try:
        server.run()
    finally:
        notify("STOPPING=1", "STATUS=stopping")


def _log_summary(counters: Counters, left: Mapping[str, int]) -> None:
    """``left``: what the engine still holds."""
    fields = {
        **counters.report(),
        **left,
        "descriptors_open": len(os.listdir("/proc/self/fd")),
        "peak_memory_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    log.info(
        "summary: %d slots, %d pages mapped, %d bytes of DMA, %d faults, %d traps",
        *(counters.slots, counters.pages_mapped, counters.dma_bytes, counters.faults, counters.traps),
        extra={"event": "summary", "fields": fields},
    )
