"""What a server has beside its clients: a history, refused DMA explained by it, and the control socket."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from vfio_user import transport

from .. import snapshot
from ..control.answers import Answers, Served
from ..control.description import CommandError
from ..control.rules import RuleCommands
from ..control.server import Control
from ..faults.engine import Faults
from ..history.faults import FaultLog, SeenFault
from ..history.records import History
from ..host.background import Background
from ..host.server import Server
from ..interfaces.pv.bindings import format_sbdf
from ..machine import Machine

__all__ = ["Controlled"]

log = logging.getLogger(__name__)


class Controlled:
    """Of one server."""

    def __init__(self, server: Server, machine: Machine, history: int, faults: Faults | None) -> None:
        """``history``: operations to keep, 0: none. ``faults``: the rules, if the machine was built for any."""
        self._server = server
        self._machine = machine
        self.faults: FaultLog = machine.iommu.keep_history(History(history) if history else None)
        self.faults.find_out = Background(server.loop, machine.inputs).add
        self.faults.told.append(self._tell)
        self._rules = RuleCommands(faults, machine.iommu.probes.rebind) if faults else None
        self._control: Control | None = None
        self._listener: transport.Listener | None = None

    def listen(
        self, path: Path, mode: int, group: int | None, kinds: Mapping[str, str], profiles: tuple[str, ...]
    ) -> None:
        """Take control clients at ``path``; ``kinds``: of functions, by name. Raises OSError."""
        self._listener = transport.listen(path, mode, group)
        served = Served(
            self._machine,
            self.faults,
            self._server.stop,
            self._clients,
            kinds,
            format_sbdf,
            profiles,
            self._save,
            self._load,
            self._server.loop,
            self._server.transport.no_snapshots,
            self._rules,
        )
        self._control = Control(self._listener, self._server.loop, self._machine.inputs, Answers(served))

    def _save(self) -> bytes:
        try:
            return snapshot.take(self._machine)
        except snapshot.BusyError as error:
            raise CommandError(str(error)) from None

    def _load(self, file: bytes) -> None:
        try:
            snapshot.restore(self._machine, file)
        except (snapshot.BusyError, snapshot.SnapshotError) as error:
            raise CommandError(str(error)) from None

    def _clients(self) -> dict[str, str]:
        return {name: str(peer) for name, peer in self._server.transport.clients().items()}

    def _tell(self, seen: SeenFault) -> None:
        said = seen.explanation
        if said is not None and self.faults.explainer.history:
            log.info(
                "fault %d: %s",
                *(seen.number, said.text),
                extra={
                    "event": "explained",
                    "fields": {
                        "fault": seen.number,
                        "stream": seen.stream,
                        "iova": seen.iova,
                        "cause": said.cause.value,
                    },
                },
            )
        if self._control:
            told = {name: value for name, value in seen.report().items() if name != "explanation"}
            why = {"cause": said.cause.value, "text": said.text} if said else {}
            self._control.tell("FAULT", told | why)

    def close(self) -> None:
        """Take leave of the control clients; before the loop is closed."""
        if self._control:
            self._control.tell("SHUTDOWN", {})
            self._control.close()
        if self._listener:
            self._listener.remove()
