"""What becomes of calls where rules are, by the name of the probe."""

from __future__ import annotations

from ..catalogue import PROBES
from . import dma, iommufd, links, operations, reports, rings, smmu, tables, transport
from .base import Point

__all__ = ["POINTS"]

POINTS: dict[str, type[Point]] = {
    **{name: operations.OperationPoint for name in PROBES if name.startswith("op.")},
    **{name: iommufd.RequestPoint for name in PROBES if name.startswith("iommufd.")},
    **{name: transport.MessagePoint for name in PROBES if name.startswith("message.")},
    "socket.accept": transport.AcceptPoint,
    "socket.receive": transport.ReceivePoint,
    "socket.send": transport.SendPoint,
    "table.map": tables.TablePoint,
    "table.unmap": tables.TablePoint,
    "pool.reserve": tables.PoolPoint,
    "context.alloc": tables.ContextAllocPoint,
    "context.free": tables.ContextFreePoint,
    "context.attach": tables.ContextAttachPoint,
    "context.hold": tables.ContextHoldPoint,
    "iotlb.lookup": tables.IotlbPoint,
    "iotlb.fill": tables.IotlbPoint,
    "iotlb.invalidate": tables.IotlbPoint,
    "dma.translate": dma.TranslatePoint,
    "dma.read": dma.ReadPoint,
    "dma.write": dma.WritePoint,
    "ring.fetch": rings.FetchPoint,
    "ring.decode": operations.SlotPoint,
    "ring.complete": rings.CompletePoint,
    "fault.record": reports.FaultPoint,
    "fault.deliver": reports.EventPoint,
    "interrupt": reports.InterruptPoint,
    "register.read": reports.ReadRegisterPoint,
    "register.write": reports.WriteRegisterPoint,
    "reset": reports.ResetPoint,
    "endpoint.work": reports.WorkPoint,
    "link.send": links.SendFramePoint,
    "link.receive": links.ReceiveFramePoint,
    "smmu.command": smmu.CommandPoint,
    "smmu.fetch": smmu.FetchPoint,
    "smmu.event": smmu.WriteEventPoint,
    "smmu.invalidated": smmu.AnswerPoint,
    "smmu.page-request": smmu.PageRequestPoint,
    "smmu.response": smmu.AnswerPoint,
}
"""For each of :data:`.catalogue.PROBES`."""
