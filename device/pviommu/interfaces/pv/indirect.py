"""Operations whose structure lies in guest memory: copied in once, carried out, copied back."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from pviommu_abi.slots import PAYLOAD_SIZE, Errno

from ...dma.access import GuestMemoryError
from ...dma.memory import GuestMemory
from .profile import Answer, Held, Progress, Reply

__all__ = ["FAULT", "carry_out", "go_on"]

FAULT = Reply(-Errno.EFAULT)


def carry_out(
    memory: GuestMemory, address: int, size: int, execute: Callable[[bytes], Answer], *, copied_back: bool
) -> Answer:
    """``execute`` an operation with the ``size`` bytes at guest physical ``address``, padded to a slot's payload.

    -EFAULT if they are not in guest memory, before anything is done; also if they cannot be written back in the end,
    and then the operation has taken effect. They are written back on failure too, as by the Xen hypercalls.
    """
    try:
        data = memory.read([(address, size)])
    except GuestMemoryError:
        return FAULT
    answer = execute(data.ljust(PAYLOAD_SIZE, b"\0"))
    return _answered(memory, address, data, answer, copied_back)


def go_on(
    memory: GuestMemory,
    address: int,
    progress: Progress,
    piece: Callable[[bytes, Progress], Answer],
    *,
    copied_back: bool,
) -> Answer:
    """The next ``piece`` of a long operation that :func:`carry_out` began, with what was copied in then."""
    data, *inner = progress.structures
    answer = piece(data.ljust(PAYLOAD_SIZE, b"\0"), replace(progress, structures=tuple(inner)))
    return _answered(memory, address, data, answer, copied_back)


def _answered(memory: GuestMemory, address: int, data: bytes, answer: Answer, copied_back: bool) -> Answer:
    if isinstance(answer, Held) and answer.carry_on is not None:
        carry_on = answer.carry_on
        return replace(answer, carry_on=lambda: _answered(memory, address, data, carry_on(), copied_back))
    if isinstance(answer, Progress):
        return replace(answer, structures=(data, *answer.structures))
    return _copy_back(memory, address, data, answer) if copied_back else answer


def _copy_back(memory: GuestMemory, address: int, data: bytes, reply: Reply) -> Reply:
    try:
        memory.write([(address, len(data))], reply.payload + data[len(reply.payload) :])
    except GuestMemoryError:
        return FAULT
    return Reply(reply.result)
