"""The control socket in the loop of a server: a few clients, each with its part of the time."""

from __future__ import annotations

import logging
import select
import socket
from functools import partial
from typing import Any

import msgspec

from vfio_user import transport

from ..hosted import HUNG_UP, Host, MayGoOn, Watch
from ..inputs import InputKind, Inputs, Source
from ..transports.closing import Closing
from .answers import Answers
from .session import Session

__all__ = ["MOST_CLIENTS", "Control"]

log = logging.getLogger(__name__)

MOST_CLIENTS = 16
"""Another one takes the place of the oldest that has said nothing yet, or is refused."""
_MOST_READ, _MOST_SENT = 1 << 10, 64 << 10
"""Bytes at a time. Of what is read each may have to be looked at by itself."""
_REST_NS = 100_000_000
"""After the system had no descriptor for a client."""
_MOST_EVENTS = 20
_WINDOW_NS = 1_000_000_000
"""So many events of a kind are told in this time; the next one says how many were not."""
_NAME = "control"
_FULL = {"error": {"class": "GenericError", "desc": f"the control socket has {MOST_CLIENTS} clients already"}}


class Control:
    """Serves the clients of one listening socket, which stays its owner's."""

    def __init__(self, sock: socket.socket, host: Host, inputs: Inputs, answers: Answers) -> None:
        self._sock = sock
        self._host = host
        self._inputs = inputs
        self._answers = answers
        self._clients: dict[int, _Client] = {}
        self._accept_one = inputs.of(Source(InputKind.CLIENT, _NAME), transport.accept)
        self.closer = Closing(inputs, _NAME, partial(host.call, self._look_again))
        self._told: dict[str, tuple[int, int, int]] = {}
        """by event: when its window began, how many were told in it and how many not"""
        self._watch = host.watch(sock.fileno(), self._accept)

    # -- clients ----------------------------------------------------------------------------------------------------

    def _accept(self, _events: int, _may_go_on: MayGoOn) -> None:
        try:
            sock = self._accept_one(self._sock)
        except OSError as error:
            log.error(
                "%s: no client can be accepted: %s",
                *(_NAME, error.strerror),
                extra={"event": "accept-failed", "fields": {"function": _NAME, "errno": error.errno or 0}},
            )
            self._watch.close()
            self._host.at(self._inputs.now_ns() + _REST_NS, self._look_at_socket)
            return
        if sock is None:
            return
        client = _Client(sock, self)
        if len(self._clients) >= MOST_CLIENTS and not self._make_room():
            client.refuse()
            return
        self._clients[sock.fileno()] = client
        client.begin(self._host)

    def _look_at_socket(self) -> None:
        self._watch = self._host.watch(self._sock.fileno(), self._accept)

    def _make_room(self) -> bool:
        for client in self._clients.values():
            if not client.session.is_negotiated:
                self.drop(client)
                return True
        return False

    def _look_again(self) -> None:
        """What clients sent is closed, so that more may be read."""
        for client in self._clients.values():
            client.wait()

    def drop(self, client: _Client) -> None:
        """End a connection."""
        del self._clients[client.fd]
        client.close()

    # -- events -----------------------------------------------------------------------------------------------------

    def tell(self, event: str, data: dict[str, Any]) -> None:
        """Tell all clients of something that happened, as far as they read and there are not too many such events."""
        if not self._clients:
            return
        now = self._inputs.now_ns()
        began, told, left_out = self._told.get(event, (now, 0, 0))
        if now - began >= _WINDOW_NS:
            began, told = now, 0
        if told >= _MOST_EVENTS:
            self._told[event] = began, told, left_out + 1
            return
        self._told[event] = began, told + 1, 0
        if left_out:
            data = data | {"left_out": left_out}
        seconds, nanoseconds = divmod(now, 1_000_000_000)
        timestamp = {"seconds": seconds, "microseconds": nanoseconds // 1000}
        for client in self._clients.values():
            client.tell({"event": event, "data": data, "timestamp": timestamp})

    def close(self) -> None:
        """Drop all clients; what is still to be sent to one that reads is sent."""
        for client in list(self._clients.values()):
            client.flush()
            self.drop(client)
        self._watch.close()


class _Client:
    """One connection."""

    def __init__(self, sock: socket.socket, among: Control) -> None:
        self.fd = sock.fileno()
        self.session = Session(among._answers)
        self._sock = sock
        self._among = among
        inputs = among._inputs
        self._receive = inputs.received(Source(InputKind.RECEIVED, _NAME))
        self._send = inputs.of(Source(InputKind.SENT, _NAME), transport.send)
        self._watch: Watch | None = None
        self._lost = 0
        """events since the last one that it was told"""

    def tell(self, event: dict[str, Any]) -> None:
        """Tell it of an event, if it has negotiated, and reads."""
        if not self.session.is_negotiated:
            return
        if self._lost:
            event = event | {"data": event["data"] | {"lost": self._lost}}
        self._lost = 0 if self.session.event(msgspec.json.encode(event) + b"\r\n") else self._lost + 1
        self.wait()

    def begin(self, host: Host) -> None:
        self._watch = host.watch(self.fd, self._exchange)
        self.wait()

    def refuse(self) -> None:
        """Say why, if the socket takes it at once, and hang up."""
        self.session.outgoing[:] = msgspec.json.encode(_FULL) + b"\r\n"
        self.flush()
        self.close()

    def _exchange(self, events: int, may_go_on: MayGoOn) -> None:
        session = self.session
        if events & (select.EPOLLIN | HUNG_UP) and self._is_read and not self._take():
            self._among.drop(self)
            return
        while True:
            if session.outgoing:
                sent = self._flush_some()
                if sent is None:
                    self._among.drop(self)
                    return
                if not sent:
                    break
            elif session.has_work:
                session.step()
            else:
                break
            if not may_go_on():
                break
        self.wait()

    @property
    def _is_read(self) -> bool:
        return self.session.is_read and not self._among.closer.busy

    def _take(self) -> bool:
        """Receive. False at the end."""
        received = self._receive(self._sock, _MOST_READ)
        if received is None:
            return False
        data, fds = received
        if fds:  # nobody asked for any
            self._among.closer.close(fd for fd in fds if fd >= 0)
        self.session.receive(data)
        return True

    def _flush_some(self) -> int | None:
        """Send what the socket takes: how many bytes; None if its other end is closed."""
        outgoing = self.session.outgoing
        try:
            sent = self._send(self._sock, bytes(outgoing[:_MOST_SENT]), ())
        except BlockingIOError:
            return 0
        except OSError:
            return None
        del outgoing[:sent]
        return sent

    def flush(self) -> None:
        """Send as much as the socket takes at once."""
        while self.session.outgoing and self._flush_some():
            pass

    def wait(self) -> None:
        """Have the loop look for what is to come next: bytes, room for replies, or time."""
        if self._watch is not None:
            if self.session.pause is not None and not self.session.pause.is_over:
                self.session.pause.then(self.wait)
            reading = select.EPOLLIN if self._is_read else 0
            self._watch.events = reading | (select.EPOLLOUT if self.session.outgoing else 0)
            self._watch.has_more = self.session.has_work

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
        self._among.closer.close_socket(self._sock)
