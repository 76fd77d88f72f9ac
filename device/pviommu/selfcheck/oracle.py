"""What each operation must lead to: the model, and the state around it (bindings, guest RAM, the selected profile)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pviommu_abi.slots import Errno

from .clones import FollowingModel
from .model import Answer
from .operations import (
    Alloc,
    Attach,
    Batch,
    Bind,
    Block,
    Dma,
    Free,
    Lookup,
    Map,
    Operation,
    Plug,
    Posted,
    Reset,
    Revive,
    Unbind,
    Unmap,
)
from .profiles import Interface, interface
from .settings import LARGE_MODULE, RAM, STREAMS, Setting

__all__ = ["BatchOutcome", "DmaOutcome", "Oracle", "Verdict"]

_PAGE = 4096
_DONE: Answer = (0, None, None)


class DmaOutcome(NamedTuple):
    """What a DMA request must lead to."""

    translation: list[tuple[int, int]] | tuple[int, str]
    """the pieces of guest memory as (GPA, length); or the first refused device address and the reason"""
    lost: int | None
    """the first device address that is translated, but to memory that is no RAM any more"""
    data: bytes
    """the data that a read finds"""
    ctx: int
    devfn: int | None
    """the endpoint's, if it is bound"""


class BatchOutcome(NamedTuple):
    """What a batch must lead to."""

    answers: tuple[Answer, ...]
    """those of the elements that were carried out"""


class Verdict(NamedTuple):
    """What one operation must lead to."""

    refused: int
    """errno if the profile refuses it before the engine is asked, else 0"""
    outcome: Any
    """an ``Answer``, a ``DmaOutcome``, a ``BatchOutcome``, or a list of verdicts for posted slots"""


class Oracle:
    """The state that a machine must be in, and the effect of operations on it."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.interface: Interface = interface(setting)
        self.model = FollowingModel(
            setting.max_contexts, setting.pool_pages, list(RAM), setting.aperture_bits, setting.identity
        )
        self.model.attached = dict.fromkeys(STREAMS, 0)
        self.bound: dict[int, int] = {}
        """devfn -> stream"""
        self.ram: dict[int, bytearray] = {0: bytearray(b"\1".ljust(_PAGE, b"\0"))}
        """gfn -> contents, of pages that were written"""
        self._handlers: dict[type, Callable[[Any], Any]] = {
            Alloc: lambda op: self.model.alloc(op.clone),
            Free: lambda op: self.model.free(op.ctx, op.reattach),
            Map: self._map,
            Unmap: lambda op: self.model.unmap(op.ctx, op.dfn, op.nr),
            Lookup: lambda op: self.model.find(op.ctx, op.dfn),
            Attach: lambda op: self.model.attach(self.bound.get(op.devfn, -1), op.ctx),
            Bind: self._bind,
            Unbind: self._unbind,
            Block: self._block,
            Batch: self._batch,
            Dma: self._dma,
            Posted: self._posted,
            Revive: lambda op: self.model.unblock(op.stream),
            Reset: self._reset,
            Plug: self._plug,
        }

    def apply(self, operation: Operation) -> Verdict:
        """Carry out an operation on the model."""
        refused = self.interface.refuses(operation)
        if isinstance(operation, Batch) and operation.ctx not in self.model.pages:
            refused = Errno.EINVAL
        handler = None if refused else self._handlers.get(type(operation))
        return Verdict(refused, handler(operation) if handler else _DONE)

    def _map(self, op: Map) -> Answer:
        return self.model.map(op.ctx, op.dfn, op.gfn, op.nr, op.access)

    def _bind(self, op: Bind) -> Answer:
        if op.stream not in STREAMS:
            return 0, "NO_ENDPOINT", None
        if self.bound.get(op.devfn) == op.stream:
            return _DONE
        if op.devfn in self.bound or op.stream in self.bound.values():
            return 0, "BOUND", None
        self.bound[op.devfn] = op.stream
        return _DONE

    def _unbind(self, op: Unbind) -> Answer:
        stream = self.bound.pop(op.devfn, None)
        if stream is None:
            return 0, "NOT_BOUND", None
        return self.model.hold(stream)

    def _block(self, op: Block) -> Answer:
        if op.devfn not in self.bound:
            return 0, "NOT_BOUND", None
        return self.model.hold(self.bound[op.devfn])

    def _batch(self, op: Batch) -> BatchOutcome:
        answers: list[Answer] = []
        for bfn, mfn, access in op.elements:
            if op.unmap:
                answers.append(self.model.unmap(op.ctx, bfn, 1))
            elif access & ~3:
                answers.append((0, "NO_ACCESS", bfn))
            else:
                answers.append(self.model.map(op.ctx, bfn, mfn, 1, access))
            if answers[-1][1]:
                break
        return BatchOutcome(tuple(answers))

    def _posted(self, op: Posted) -> list[Verdict]:
        return [self.apply(each) for each in (*op.operations, op.then)]

    def _reset(self, _: Reset) -> None:
        self.model.reset()
        self.bound.clear()

    def _plug(self, op: Plug) -> None:
        self.model.plug([*RAM, LARGE_MODULE] if op.present else list(RAM))

    # -- DMA --------------------------------------------------------------------------------------------------------

    def _dma(self, op: Dma) -> DmaOutcome:
        translation = self.model.translate(op.stream, op.iova, op.length, 2 if op.write else 1)
        devfn = next((devfn for devfn, stream in self.bound.items() if stream == op.stream), None)
        ctx, lost, data = self.model.attached[op.stream], None, b""
        if isinstance(translation, list):
            lost = self._lost(op.iova, translation)
            if lost is None:
                data = self._write(op, translation) if op.write else self.read(translation)
        return DmaOutcome(translation, lost, data, ctx, devfn)

    def _lost(self, iova: int, pieces: list[tuple[int, int]]) -> int | None:
        for gpa, length in pieces:
            if not any(gpa >> 12 in part for part in self.model.ram):
                return iova
            iova += length
        return None

    def read(self, pieces: list[tuple[int, int]]) -> bytes:
        """The bytes that guest RAM must hold in these (GPA, length) pieces, none of which crosses a page boundary."""
        return b"".join(
            bytes(self.ram[gpa >> 12][gpa % _PAGE : gpa % _PAGE + length]) if gpa >> 12 in self.ram else bytes(length)
            for gpa, length in pieces
        )

    def _write(self, op: Dma, pieces: list[tuple[int, int]]) -> bytes:
        data = (op.pattern.to_bytes(8, "little") * (op.length // 8 + 1))[: op.length]
        done = 0
        for gpa, length in pieces:
            page = self.ram.setdefault(gpa >> 12, bytearray(_PAGE))
            page[gpa % _PAGE : gpa % _PAGE + length] = data[done : done + length]
            done += length
        return data
