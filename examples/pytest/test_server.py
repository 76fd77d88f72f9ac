"""A server process, as QEMU finds it: sockets, a control socket, and guests that come and go."""

from __future__ import annotations

from pviommu.testing.server import RunningServer


def test_contexts_end_with_their_guest(pviommu_server: RunningServer) -> None:
    guest = pviommu_server.connected()
    ctx = guest.attach("dma0")
    assert guest.map(ctx, 0x10, 0x200, 3) == (0, 3)
    assert pviommu_server.call("status")["mapped_pages"] == 3

    pviommu_server.disconnect()

    assert (pviommu_server.folder / "iommu.sock").is_socket()
    assert pviommu_server.call("status")["mapped_pages"] == 0
    again = pviommu_server.connected()
    assert again.usage().mapped_pages == 0
