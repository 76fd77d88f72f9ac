"""The vfio-user protocol: a device in one process, its virtual machine monitor in another, a stream socket between.

A server, where ``device`` is any :class:`Device`::

    listener = transport.listen("/run/dev.sock")
    while select.select([listener], [], [])[0]:
        sock, session = transport.accept(listener), Session(device)
        while session.state is not State.CLOSED and select.select([sock], [], [])[0]:
            chunk = transport.receive(sock)
            session.eof() if chunk is None else session.receive(*chunk)
            if transport.flush(sock, session.outgoing) is transport.Flush.CLOSED:
                session.eof()
        sock.close()

(A server of more than one client also waits for writability when ``flush`` says BLOCKED, and neither reads from a
session that is ``paused`` nor forgets to ``resume`` it.) A client::

    with Client.connect("/run/dev.sock") as client:
        client.dma_map(0, size, memory_fd)
        print(client.device_info(), hex(client.config_read(0, 4)))
        eventfds = client.enable_msix(2)
        client.region_write(RegionIndex.BAR0, 0x10, b"\\x01\\0\\0\\0", posted=True)
        os.eventfd_read(eventfds[0])

Messages are declared in :mod:`vfio_user.messages`; :mod:`vfio_user.framing`, :mod:`vfio_user.negotiation` and
:mod:`vfio_user.server` touch no socket, which is why what they do can be recorded and replayed.
"""

from __future__ import annotations

from . import transport
from .client import Client, MappedArea, RegionInfo, Reply
from .device import Steps
from .errors import ProtocolError, RemoteError, RequestError
from .framing import Frame, FrameReader
from .interrupts import InterruptTable
from .messages import (
    Command,
    DeviceFlags,
    DmaMapFlags,
    Header,
    HeaderFlags,
    IrqIndex,
    IrqInfoFlags,
    RegionFlags,
    RegionIndex,
)
from .negotiation import Capabilities, SessionLimits
from .server import (
    Device,
    DeviceInfo,
    DmaMapping,
    Irq,
    IrqAction,
    IrqKind,
    IrqRequest,
    Outgoing,
    Region,
    Session,
    State,
)

__all__ = [
    "Capabilities",
    "Client",
    "Command",
    "Device",
    "DeviceFlags",
    "DeviceInfo",
    "DmaMapFlags",
    "DmaMapping",
    "Frame",
    "FrameReader",
    "Header",
    "HeaderFlags",
    "InterruptTable",
    "Irq",
    "IrqAction",
    "IrqIndex",
    "IrqInfoFlags",
    "IrqKind",
    "IrqRequest",
    "MappedArea",
    "Outgoing",
    "ProtocolError",
    "Region",
    "RegionFlags",
    "RegionIndex",
    "RegionInfo",
    "RemoteError",
    "Reply",
    "RequestError",
    "Session",
    "SessionLimits",
    "State",
    "Steps",
    "transport",
]
