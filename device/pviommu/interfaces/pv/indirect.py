"""Operations whose structure lies in guest memory: copied in once, carried out, copied back."""

from __future__ import annotations

from collections.abc import Callable

from pviommu_abi.slots import PAYLOAD_SIZE, Errno

from ...dma.access import GuestMemoryError
from ...dma.memory import GuestMemory
from .profile import Answer, Reply, Steps

__all__ = ["FAULT", "carry_out"]

FAULT = Reply(-Errno.EFAULT)


def carry_out(
    memory: GuestMemory, address: int, size: int, execute: Callable[[bytes], Answer], *, copied_back: bool
) -> Answer:
    """``execute`` an operation with the ``size`` bytes at guest physical ``address``, padded to a slot's payload.

    -EFAULT if they are not in guest memory, before anything is done, or if they cannot be written back in the end,
    where what was done stays done. They are written back on failure too, as the Xen hypercalls do it.
    """
    try:
        data = memory.read([(address, size)])
    except GuestMemoryError:
        return FAULT
    answer = execute(data.ljust(PAYLOAD_SIZE, b"\0"))
    if not copied_back:
        return answer
    if isinstance(answer, Reply):
        return _copy_back(memory, address, data, answer)
    return _copy_back_later(memory, address, data, answer)


def _copy_back_later(memory: GuestMemory, address: int, data: bytes, steps: Steps) -> Steps:
    reply = yield from steps
    return _copy_back(memory, address, data, reply)


def _copy_back(memory: GuestMemory, address: int, data: bytes, reply: Reply) -> Reply:
    try:
        memory.write([(address, len(data))], reply.payload + data[len(reply.payload) :])
    except GuestMemoryError:
        return FAULT
    return Reply(reply.result)
