"""One client behind a socket."""

from __future__ import annotations

import select
import socket

from vfio_user import RequestError, Session, transport
from vfio_user.commands import SERVED
from vfio_user.device import Waiting
from vfio_user.foreign import Closer, is_eventfd
from vfio_user.memory_kind import check_memory
from vfio_user.messages import Command
from vfio_user.server import CarryOut
from vfio_user.transport import Flush

from ..hosted import HUNG_UP, MayGoOn, Watch
from ..inputs import InputKind, Inputs, Source
from ..pci.function import PciFunction
from .peers import Peer, is_gone

__all__ = ["MESSAGES", "Connection"]

_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
_READABLE = _IN | HUNG_UP
_CHUNK, _LARGEST_CHUNK = 1 << 10, 64 << 10
"""Most bytes to read from a client at a time: few, since the messages in them wait in the session; of one large message
more."""


MESSAGES = (Command.VERSION, *SERVED)
"""Commands that are carried out."""


class Connection:
    """A client of one function, or one that is refused as such."""

    def __init__(
        self,
        sock: socket.socket,
        function: PciFunction,
        inputs: Inputs,
        closer: Closer,
        peer: Peer,
        refusal: RequestError | None = None,
    ) -> None:
        self.sock = sock
        self.peer = peer
        self.function = function
        self.closer = closer
        self.is_refused = refusal is not None
        name = function.name
        descriptors = Source(InputKind.DESCRIPTOR, name)
        self.session = Session(
            function,
            name=name,
            closer=closer,
            refusal=refusal,
            check_memory=inputs.of(descriptors, check_memory),
            is_eventfd=inputs.of(descriptors, is_eventfd),
            around=self._around if not refusal and function.probes.interposer else None,
        )
        probe = function.probes.probe
        self._receive = probe("socket.receive", inputs.received(Source(InputKind.RECEIVED, name)), name, self)
        self._send = probe("socket.send", inputs.of(Source(InputKind.SENT, name), transport.send), name, self)
        self._is_gone = inputs.of(Source(InputKind.PEER, name), is_gone)
        self.watch: Watch | None = None
        """by which the loop looks at it"""
        self.reading: Waiting | None = None
        self.writing: Waiting | None = None
        """what is waited for before anything is read from the client, or written to it"""
        self._awaited: set[Waiting] = set()
        """of these those that tell of their end"""

    def _around(self, carry_out: CarryOut) -> CarryOut:
        """Make each message a probe, ``message.NAME``."""
        probes, name = self.function.probes, self.function.name
        probed = {
            int(command): probes.probe(f"message.{command.name.lower()}", carry_out, name, self) for command in MESSAGES
        }
        return lambda frame: probed.get(frame.header.command, carry_out)(frame)

    @property
    def is_read(self) -> bool:
        """Not while the client does not take its replies, or what was sent before is still being closed."""
        if self.reading is not None and not self.reading.is_over:
            return False
        return not self.session.paused and (self.is_refused or not self.closer.busy)

    @property
    def is_abandoned(self) -> bool:
        """Whether its process is gone, and something that it has sent may be what keeps its end open."""
        return self.session.may_keep_descriptors and self._is_gone(self.sock, self.peer)

    @property
    def _has_more(self) -> bool:
        """Whether the session can go on without anything from the client."""
        return self.session.paused and not self.session.outgoing and not self.session.is_held

    def exchange(self, events: int, may_go_on: MayGoOn) -> None:
        """Receive what the client has sent, carry it out, and send the replies."""
        session = self.session
        if self._has_more:
            session.resume(may_go_on)
        elif events & _READABLE and self.is_read:
            self._read(may_go_on)
        elif events & HUNG_UP and (not session.paused or session.is_held):
            # nothing to be read, and told again and again
            session.eof()
        if session.outgoing:
            self._flush()
        while session.paused and self._has_more and may_go_on():
            session.resume(may_go_on)
            self._flush()

    def _read(self, may_go_on: MayGoOn) -> None:
        """Take what the client has sent, and act on it. Linux ends a read after descriptors, whatever was sent behind
        them, so there is another one then: QEMU announces all ranges of guest memory at once.
        """
        session = self.session
        while True:
            wanted = session.wanted
            received = self._receive(self.sock, _CHUNK if wanted <= _CHUNK else min(wanted, _LARGEST_CHUNK))
            if received is None:
                self._flush()  # it may have closed no more than its own side
                session.eof()
                return
            data, fds = received
            came_with_descriptors = bool(fds)
            session.receive(data, fds, may_go_on)
            if not (came_with_descriptors and self.is_read and may_go_on()):
                return

    def _flush(self) -> None:
        """Send the client what it is to get, as far as it takes it."""
        if self.session.outgoing and transport.flush(self.sock, self.session.outgoing, self._send) is Flush.CLOSED:
            self.session.eof()

    def wait(self) -> None:
        """Have the loop look for what is to come next: bytes, room for replies, or time."""
        watch, session = self.watch, self.session
        if watch is not None:
            reading = _IN if self.is_read else 0
            watch.events = reading | (_OUT if session.outgoing else 0)
            watch.has_more = self._has_more
            if session.waits_for or self.reading or self.writing:
                self._wait_for_rules(watch)

    def _wait_for_rules(self, watch: Watch) -> None:
        """Have the loop look once what is waited for is over, and not for what cannot be done before."""
        if self.writing is not None and not self.writing.is_over:
            watch.events &= ~_OUT
        every = (self.session.waits_for, self.reading, self.writing)
        awaited = {waiting for waiting in every if waiting is not None and not waiting.is_over}
        before, self._awaited = self._awaited, awaited
        for waiting in awaited - before:
            waiting.then(self.wait)

    def close(self) -> None:
        """End the connection; the session is over."""
        if self.watch is not None:
            self.watch.close()
        if self.function.probes.interposer:
            self.function.probes.interposer.client_gone(self)
        self.closer.close_socket(self.sock)
