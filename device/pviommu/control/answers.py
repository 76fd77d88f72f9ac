"""What the commands do. Each is a method ``do_NAME`` with the command's arguments.

It returns the result; or it is a generator that does a bounded piece of work between two yields, and returns it. What
it yields is a :class:`Pause` if there is nothing to do before that is over.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from pviommu_abi.registers import ABI_VERSION

from .. import __version__
from ..counters import Counters
from ..engine import BLOCKED, IDENTITY, PAGE_SHIFT, Area, Engine
from ..history.explanation import NOT_YET, Asked, Explainer, access_text
from ..history.faults import FaultLog, SeenFault
from ..host_errors import is_special, write_whole
from ..hosted import Host
from ..inputs import Inputs, WorkOutcome
from . import prometheus
from .commands import COMMANDS
from .description import Command, CommandError, checked
from .rules import RuleCommands

__all__ = ["TRACED", "Answer", "Answers", "Pause", "Served", "finished"]

TRACED = logging.getLogger("vfio_user.server")
"""What logs each vfio-user message, at level DEBUG."""
_LEAVES = 256
"""Pieces of areas that are looked at in one step: a fifth of a millisecond or so."""
_WALKS = 32
"""Walks of a guest's tables in one step, about as long."""
_RECORDS = 64
_CONTEXTS = 1024
_PATIENCE_NS = 2_000_000_000
"""How long a snapshot waits for what is not done yet."""
_AGAIN_NS = 1_000_000
"""After which it looks again."""
_MOST_FILE = 256 << 20
_MOST_STEPS = 256
"""Of one reply: a mapping that is in very many pieces is continued in the next one."""

_T = TypeVar("_T")


class Pause:
    """What a command waits for: a thread, or a time."""

    def __init__(self) -> None:
        self.is_over = False
        self._callback: Callable[[], None] | None = None

    def then(self, callback: Callable[[], None]) -> None:
        """Call ``callback``, and no one named earlier, once it is over."""
        self._callback = callback

    def end(self) -> None:
        """It is over."""
        self.is_over = True
        if self._callback is not None:
            self._callback()


Steps = Generator[Pause | None, None, dict[str, Any]]
Answer = dict[str, Any] | Steps


def finished(answer: Answer, stepped: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """The result, where nobody else is to have a turn meanwhile. ``stepped`` is called after each step but the last."""
    if not isinstance(answer, Generator):
        return answer
    while True:
        try:
            next(answer)
        except StopIteration as end:
            result: dict[str, Any] = end.value
            return result
        stepped()


class _Contexts(Protocol):
    def endpoints(self) -> dict[int, int]: ...
    def domain(self, ctx: int) -> int: ...
    def context(self, domain: int) -> int: ...
    def __contains__(self, ctx: int) -> bool: ...


class _Config(Protocol):
    @property
    def bus_master(self) -> bool: ...


class _Function(Protocol):
    name: str

    @property
    def config(self) -> _Config: ...
    def reset(self) -> None: ...


class _Ring(Protocol):
    number: int
    entries: int

    @property
    def completed(self) -> int: ...
    @property
    def broken(self) -> bool: ...
    def pending(self) -> int: ...


class _Bindings(Protocol):
    def sbdf(self, stream: int) -> int: ...


class _Iommu(_Function, Protocol):
    @property
    def engine(self) -> Engine: ...
    @property
    def contexts(self) -> _Contexts: ...
    @property
    def rings(self) -> Iterable[_Ring]: ...
    @property
    def bindings(self) -> _Bindings: ...


class _Endpoint(_Function, Protocol):
    stream: int

    @property
    def failed(self) -> bool: ...


class _Smmu(_Function, Protocol):
    """A virtual SMMU: see :class:`pviommu.interfaces.smmuv3.function.SmmuFunction`."""

    @property
    def streams(self) -> Mapping[int, int]: ...
    def report(self) -> dict[str, Any]: ...
    def last_events(self) -> list[dict[str, Any]]: ...
    def explain(self, stream: int, iova: int, pasid: int | None) -> dict[str, Any]: ...


@runtime_checkable
class _Card(Protocol):
    """A network card: see :class:`pviommu.endpoints.virtio_net.VirtioNet`."""

    def link_report(self) -> dict[str, Any]: ...
    def set_link(self, is_up: bool) -> None: ...
    def set_mac(self, text: str) -> None: ...


class _Machine(Protocol):
    @property
    def iommu(self) -> _Iommu: ...
    @property
    def endpoints(self) -> Mapping[str, _Endpoint]: ...
    @property
    def smmus(self) -> Mapping[str, _Smmu]: ...
    @property
    def inputs(self) -> Inputs: ...
    @property
    def counters(self) -> Counters: ...
    def functions(self) -> Iterable[_Function]: ...


@dataclass
class Served:
    """What the commands are about."""

    machine: _Machine
    faults: FaultLog
    stop: Callable[[], None]
    """ends the server"""
    clients: Callable[[], Mapping[str, str]] = dict
    """whom each function has as a client, by its name"""
    kinds: Mapping[str, str] = field(default_factory=dict)
    """kind of each function, by its name"""
    sbdf: Callable[[int], str] = str
    """how people write a PCI address"""
    profiles: tuple[str, ...] = ()
    save: Callable[[], bytes] = lambda: b""
    """the machine as a file. Raises :class:`CommandError`: not now, perhaps later"""
    load: Callable[[bytes], None] = lambda file: None
    """has the machine go on from a file. Raises :class:`CommandError`"""
    host: Host | None = None
    """has a thread for files"""
    no_snapshots: str = ""
    """why a snapshot would lack something, or be of no use, if so"""
    rules: RuleCommands | None = None
    """a server has them; a machine without fault rules does not know these commands"""


class Answers:
    """Carries out commands. More of them may be added."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._machine = served.machine
        self._iommu = served.machine.iommu
        self._now_ns = served.machine.inputs.now_ns
        self._began = self._now_ns()
        self._commands: dict[str, tuple[Command, Callable[..., Answer]]] = {}
        for command in COMMANDS:
            name = f"do_{command.name.replace('-', '_')}"
            carry_out = getattr(self, name, None) or getattr(served.rules, name, None)
            if carry_out:
                self.add(command, carry_out)

    def add(self, command: Command, carry_out: Callable[..., Answer]) -> None:
        """One command more. Raises ValueError for a name that there is."""
        if command.name in self._commands:
            raise ValueError(f"there is a command {command.name} already")
        self._commands[command.name] = command, carry_out

    def begin(self, name: str, arguments: Mapping[str, Any]) -> Answer:
        """Carry out a command, or begin to. Raises :class:`CommandError`, as the steps may."""
        if name not in self._commands:
            if name in _QMP:
                return {"return": _QMP[name](self)}
            names = ", ".join(self._commands)
            raise CommandError(f"there is no command {name[:40]!r}; there are {names}", "CommandNotFound")
        command, carry_out = self._commands[name]
        return carry_out(**checked(command, arguments))

    # -- about the server -------------------------------------------------------------------------------------------

    def do_version(self) -> Answer:
        return {
            "version": __version__,
            "abi": ABI_VERSION,
            "profiles": list(self._served.profiles),
            "core": self._engine.core_name,
        }

    def do_commands(self) -> Answer:
        return {"commands": [described(command) for command, _ in self._commands.values()]}

    def _usage(self) -> Generator[None, None, dict[str, int]]:
        """What is in use, of all contexts."""
        engine, mapped = self._engine, 0
        domains = engine.domains()
        for place, number in enumerate(domains, 1):
            mapped += engine.mapped_pages(number)
            if place % _CONTEXTS == 0:
                yield
        used, total = engine.pool_pages()
        return {"contexts": len(domains), "mapped_pages": mapped, "pool_pages_used": used, "pool_pages": total}

    def do_status(self) -> Steps:
        usage = yield from self._usage()
        history = self._served.faults.explainer.history
        clients = self._served.clients()
        return {
            "uptime_ns": self._now_ns() - self._began,
            **usage,
            "faults": self._served.faults.count,
            "history": history.size if history else 0,
            "operations": history.count if history else 0,
            "trace": TRACED.isEnabledFor(logging.DEBUG),
            "functions": [
                {
                    "name": function.name,
                    "kind": self._served.kinds.get(function.name, ""),
                    "client": clients.get(function.name),
                    "bus_master": function.config.bus_master,
                }
                for function in self._machine.functions()
            ],
            "rings": [
                {
                    "ring": ring.number,
                    "entries": ring.entries,
                    "completed": ring.completed,
                    "pending": 0 if ring.broken else ring.pending(),
                    "broken": ring.broken,
                }
                for ring in self._iommu.rings
            ],
        }

    def do_statistics(self, *, format: str) -> Steps:
        values = self._machine.counters.report() | (yield from self._usage())
        links = [card.link_report() for card in self._cards().values()]
        if format == "prometheus":
            return {"text": prometheus.text(values) + prometheus.of_links(links)}
        return {"statistics": values} | ({"links": links} if links else {})

    def _cards(self) -> dict[str, _Card]:
        return {name: card for name, card in self._machine.endpoints.items() if isinstance(card, _Card)}

    def do_links(self) -> Answer:
        return {"links": [card.link_report() for card in self._cards().values()]}

    def _card(self, name: str) -> _Card:
        cards = self._cards()
        if name not in cards:
            there = f"there are {', '.join(cards)}" if cards else "this machine has none"
            raise CommandError(f"there is no network card {name[:40]!r}; {there}", _NOT_FOUND)
        return cards[name]

    def do_link(self, *, card: str, state: str) -> Answer:
        found = self._card(card)
        try:
            found.set_link(state == "up")
        except OSError as error:
            raise CommandError(str(error.strerror or error)) from None
        return {"name": card, "up": found.link_report()["up"]}

    def do_mac(self, *, card: str, address: str) -> Answer:
        found = self._card(card)
        try:
            found.set_mac(address)
        except ValueError as error:
            raise CommandError(f"mac: address {address[:40]!r}: {error}") from None
        return {"name": card, "mac": found.link_report()["mac"]}

    def do_trace(self, *, state: str) -> Answer:
        TRACED.setLevel(logging.DEBUG if state == "on" else logging.NOTSET)
        return {"trace": TRACED.isEnabledFor(logging.DEBUG)}

    def do_reset(self, *, function: str) -> Answer:
        functions = {each.name: each for each in self._machine.functions()}
        if function not in functions:
            raise CommandError(f"there is no function {function[:40]!r}; there are {', '.join(functions)}", _NOT_FOUND)
        functions[function].reset()
        return {}

    def do_snapshot(self, *, file: str) -> Steps:
        self._check_snapshots()
        deadline = self._now_ns() + _PATIENCE_NS
        while True:
            try:
                content = self._served.save()
                break
            except CommandError:
                if self._now_ns() > deadline:
                    raise
            pause = Pause()
            self._host().at(self._now_ns() + _AGAIN_NS, pause.end)
            yield pause
        yield from self._in_thread(lambda: _keep(Path(file), content))
        return {"bytes": len(content)}

    def do_restore(self, *, file: str) -> Steps:
        self._check_snapshots()
        self._served.load((yield from self._in_thread(lambda: _content(file))))
        return {}

    def _check_snapshots(self) -> None:
        if self._served.no_snapshots:
            raise CommandError(f"no snapshots here: {self._served.no_snapshots}")

    def _host(self) -> Host:
        if self._served.host is None:
            raise CommandError("this server has no threads for files")
        return self._served.host

    def _in_thread(self, work: Callable[[], _T]) -> Generator[Pause, None, _T]:
        """Do what may block elsewhere. Errors of the system are told."""
        outcomes: list[WorkOutcome[_T]] = []
        pause = Pause()

        def arrived(outcome: WorkOutcome[_T]) -> None:
            outcomes.append(outcome)
            pause.end()

        self._host().submit(self, work, arrived)
        while not outcomes:
            yield pause
        try:
            return outcomes[0].result()
        except OSError as error:
            raise CommandError(f"{error.filename}: {error.strerror}") from None

    generation = 0
    """What it asks a thread for is always of interest: see :class:`pviommu.hosted.Owner`."""

    def do_quit(self) -> Answer:
        self._served.stop()
        return {}

    # -- contexts ---------------------------------------------------------------------------------------------------

    @property
    def _engine(self) -> Engine:
        return self._iommu.engine

    def _domain(self, context: int) -> int:
        if context not in self._iommu.contexts:
            raise CommandError(f"there is no context {context}", _NOT_FOUND)
        return self._iommu.contexts.domain(context)

    def _kind(self, domain: int) -> str:
        if domain in (IDENTITY, BLOCKED):
            return "identity" if domain == IDENTITY else "blocked"
        if self._engine.has_guest_tables(domain):
            return "tables"
        return "clone" if self._engine.is_clone(domain) else "paging"

    def do_contexts(self, *, first: int | None, limit: int) -> Answer:
        contexts = self._iommu.contexts
        inside: dict[int, list[int]] = {}
        for stream, context in contexts.endpoints().items():
            inside.setdefault(context, []).append(stream)
        numbers = [number for number in (0, *self._engine.domains()) if number >= (first or 0)]
        found = [
            {
                "context": number,
                "kind": self._kind(domain),
                "pages": self._engine.mapped_pages(domain),
                "direct": len(self._engine.direct(domain)),
                "streams": inside.get(number, []),
            }
            for number in numbers[:limit]
            for domain in (contexts.domain(number),)
        ]
        return {"contexts": found, "next": numbers[limit] if len(numbers) > limit else None}

    def do_dump(self, *, context: int, first: int | None, limit: int) -> Steps:
        domain = self._domain(context)
        direct = [{"dfn": low, "pages": high - low + 1} for low, high in self._engine.direct(domain)]
        areas, following = yield from self._areas(domain, first or 0, limit)
        return {
            "context": context,
            "kind": self._kind(domain),
            "direct": direct if first is None else [],
            "areas": [
                {"dfn": area.dfn, "pages": area.nr, "gfn": area.gfn, "access": access_text(int(area.access))}
                for area in areas
            ],
            "next": following,
        }

    def _areas(self, domain: int, position: int, limit: int) -> Generator[None, None, tuple[list[Area], int | None]]:
        """Up to ``limit`` areas, and where to go on. What the guest changes meanwhile shows in what is left."""
        if self._engine.has_guest_tables(domain):
            return (yield from self._areas_of_guest(domain, position, limit))
        areas: list[Area] = []
        for _ in range(_MOST_STEPS):
            pieces = list(islice(self._engine.pieces(domain, position), _LEAVES))
            for piece in pieces:
                last = areas[-1] if areas else None
                if last and not piece.starts_call and (last.dfn + last.nr, last.gfn + last.nr) == piece[:2]:
                    areas[-1] = last._replace(nr=last.nr + piece.nr)
                elif len(areas) == limit:
                    return areas, piece.dfn
                else:
                    areas.append(piece)
                position = piece.dfn + piece.nr
            if len(pieces) < _LEAVES:
                return areas, None
            yield
            if domain not in (IDENTITY, BLOCKED) and not self._engine.is_paging(domain):
                raise CommandError("the context was freed meanwhile", _NOT_FOUND)
        return areas, position

    def _areas_of_guest(
        self, domain: int, position: int, limit: int
    ) -> Generator[None, None, tuple[list[Area], int | None]]:
        """The same of tables that the guest owns: adjacent leaves are one area."""
        areas: list[Area] = []
        for _ in range(_MOST_STEPS):
            tables = self._engine.guest_tables(domain)
            if tables is None:
                raise CommandError("the context was freed meanwhile", _NOT_FOUND)
            found, following = tables.scan(position, _WALKS)
            for piece in found:
                last = areas[-1] if areas else None
                if last and (last.dfn + last.nr, last.gfn + last.nr, last.access) == (
                    piece.dfn,
                    piece.gfn,
                    piece.access,
                ):
                    areas[-1] = last._replace(nr=last.nr + piece.nr)
                elif len(areas) == limit:
                    return areas, piece.dfn
                else:
                    areas.append(piece)
            if following is None:
                return areas, None
            position = following
            yield
        return areas, position

    def do_endpoints(self) -> Answer:
        contexts, bindings = self._iommu.contexts.endpoints(), self._iommu.bindings
        return {
            "endpoints": [
                {
                    "stream": endpoint.stream,
                    "name": endpoint.name,
                    "kind": self._served.kinds.get(endpoint.name, ""),
                    "sbdf": self._served.sbdf(bindings.sbdf(endpoint.stream)),
                    "context": contexts[endpoint.stream],
                    "blocked": self._engine.is_blocked(endpoint.stream),
                    "failed": endpoint.failed,
                }
                for endpoint in sorted(self._machine.endpoints.values(), key=lambda each: each.stream)
                if endpoint.stream in contexts  # others are behind another IOMMU
            ]
        }

    # -- what happened ----------------------------------------------------------------------------------------------

    def do_faults(self, *, first: int | None, limit: int) -> Answer:
        faults = self._served.faults
        kept = [seen for seen in faults.kept if seen.number >= (first or 0)]
        return {
            "faults": [seen.report() for seen in kept[:limit]],
            "count": faults.count,
            "unexplained": faults.unexplained,
            "next": kept[limit].number if len(kept) > limit else None,
        }

    def do_operations(self, *, first: int | None, limit: int) -> Steps:
        explainer = self._served.faults.explainer
        history = explainer.history
        if history is None:
            raise CommandError("no history is kept: start the server with --history N")
        begin = max(history.oldest, first or 0)
        end = min(begin + limit, history.count)
        now, found = self._now_ns(), []
        for place, record in enumerate(islice(history.back(end), max(0, end - begin)), 1):
            found.append(explainer.operation(record, now))
            if place % _RECORDS == 0:
                yield None
        return {
            "operations": found[::-1],
            "next": end if end < history.count else None,
        }

    def do_explain(self, *, iova: int, context: int | None, stream: int | None, pasid: int | None) -> Steps:
        if (context is None) == (stream is None):
            raise CommandError("explain: give either a context or a stream")
        if stream is not None:
            for smmu in self._machine.smmus.values():
                if stream in smmu.streams:
                    return _NO_CONTEXT | {"iova": iova} | smmu.explain(stream, iova, pasid)
            endpoints = self._iommu.contexts.endpoints()
            if stream not in endpoints:
                behind = [each for smmu in self._machine.smmus.values() for each in smmu.streams]
                known = ", ".join(map(str, sorted((*endpoints, *behind))))
                raise CommandError(f"there is no stream {stream}; there are {known}", _NOT_FOUND)
            context = endpoints[stream]
        if pasid is not None:
            raise CommandError(f"explain: pasid {pasid}: only DMA of a stream behind an SMMU has one")
        assert context is not None
        domain, faults = self._domain(context), self._served.faults
        seen = faults.last(iova >> PAGE_SHIFT, stream=stream, context=None if stream is not None else context)
        present = yield from faults.explainer.begin(Asked(domain, iova))
        found = present.report() | {"iova": iova, "context": context, "fault": None, **_NO_SMMU}
        if seen is not None:
            found |= yield from self._why(faults.explainer, seen)
        return found

    def _why(self, explainer: Explainer, seen: SeenFault) -> Steps:
        """What is to be said of a fault that was."""
        fault = {name: value for name, value in seen.report().items() if name != "explanation"}
        said = seen.explanation
        if said is None:
            return {"cause": "not-explained", "text": "too many requests were refused at a time", "fault": fault}
        if said.cause in NOT_YET:
            domain = self._iommu.contexts.domain(seen.context)
            steps = explainer.mapped_since(seen.operations, domain, seen.iova >> PAGE_SHIFT)
            later = yield from steps
            if later is not None:
                explainer.came_late(said, later, seen.time_ns)
        return {"cause": said.cause.value, "text": said.text, "fault": fault}

    def do_smmus(self) -> Answer:
        smmus = self._machine.smmus.values()
        events = [event for smmu in smmus for event in smmu.last_events()]
        return {"smmus": [smmu.report() for smmu in smmus], "events": events}


_NOT_FOUND = "DeviceNotFound"
_NO_SMMU: dict[str, Any] = {"smmu": None, "reads": [], "cached": []}
_NO_CONTEXT: dict[str, Any] = {
    **dict.fromkeys(("context", "now", "below", "above", "fault")),
    "contexts": [],
    "operations": [],
    "history": {},
    "rules": [],
}
"""Of what `explain` tells, all that is about contexts."""


def _keep(path: Path, content: bytes) -> None:
    """Into a regular file. A FIFO that nobody reads would hold the thread for ever. Raises OSError."""
    if is_special(path):
        raise OSError(errno.EINVAL, "no regular file", str(path))
    write_whole(path, content)


def _content(file: str) -> bytes:
    """Of a regular file that is not too large. Raises OSError."""
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_FILE:
        os.close(fd)
        raise OSError(errno.EINVAL, "no regular file, or too large for a snapshot", file)
    with open(fd, "rb") as opened:
        return opened.read()


def described(command: Command) -> dict[str, Any]:
    """A command as JSON tells it."""
    return {
        "name": command.name,
        "help": command.help,
        "arguments": [
            {
                "name": each.name,
                "type": each.form.value,
                "unit": each.unit,
                "required": each.required,
                "default": each.default,
                "choices": list(each.choices),
                "help": each.help,
            }
            for each in command.arguments
        ],
        "result": [
            {"name": each.name, "type": each.form.value, "unit": each.unit, "help": each.help}
            for each in command.result
        ],
    }


def qmp_version() -> dict[str, Any]:
    """What the greeting has, and ``query-version`` answers: as QEMU's, with a package of ours."""
    major, minor, micro = (int(part) for part in __version__.split(".")[:3])
    return {"qemu": {"major": major, "minor": minor, "micro": micro}, "package": f"pviommu {__version__}"}


_QMP: dict[str, Callable[[Answers], Any]] = {
    "query-version": lambda _: qmp_version(),
    "query-commands": lambda answers: [{"name": name} for name in answers._commands],
}
"""What tools that are made for QMP ask."""
