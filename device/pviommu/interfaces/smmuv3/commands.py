"""Commands of the guest: what each of them makes the caches forget, and which are illegal."""

from __future__ import annotations

from collections.abc import Callable

from smmuv3.commands import (
    ALL_ADDRESSES,
    ALL_STREAMS,
    AtcInv1,
    Cfgi0,
    CfgiRange1,
    Completion,
    Opcode,
    PriResp1,
    PriResponse,
    Resume0,
    Resume1,
    Sync0,
    Tlbi0,
    Tlbi1,
)

from ...dma.atc import Invalidation
from ...dma.pages import Response
from .ats import Invalidations, InvalidationWait
from .caches import Translations
from .config import SmmuConfig
from .page_requests import PageRequests
from .queues import Consumed
from .stalls import Outcome, Stalls
from .translation import Caches

__all__ = ["Commands"]

_RESPONSES = {
    PriResponse.FAILURE: Response.FAILURE,
    PriResponse.INVALID: Response.INVALID,
    PriResponse.SUCCESS: Response.SUCCESS,
}


class Commands:
    """Carries out commands. Those for what this SMMU does not have are illegal: EL2 and EL3, MPAM; stage 2, stalls, ATS
    and PRI unless it is configured with them.
    """

    def __init__(
        self,
        config: SmmuConfig,
        caches: Caches,
        stalls: Stalls,
        invalidations: Invalidations,
        requests: PageRequests,
        *,
        is_on: Callable[[], bool],
        hold: Callable[[InvalidationWait, Callable[[], Consumed], tuple[int, int]], None],
    ) -> None:
        """``is_on``: whether translation is. ``hold``: see :meth:`.queues.CommandQueue.hold`."""
        self._caches = caches
        self._stalls = stalls
        self._invalidations = invalidations
        self._requests = requests
        self._is_on = is_on
        self._hold = hold
        self._has_substreams = config.ssid_bits > 0
        self._has_stage2 = config.stage2
        carry_out: dict[int, Callable[[int, int], Consumed]] = {
            Opcode.PREFETCH_CFG: self._prefetch,
            Opcode.PREFETCH_ADDR: self._prefetch,
            Opcode.CFGI_STE: self._cfgi_ste,
            Opcode.CFGI_STE_RANGE: self._cfgi_ste_range,
            Opcode.CFGI_CD: self._cfgi_cd,
            Opcode.CFGI_CD_ALL: self._cfgi_cd_all,
            Opcode.TLBI_NH_ALL: self._tlbi_nh_all,
            Opcode.TLBI_NH_ASID: self._tlbi_nh_asid,
            Opcode.TLBI_NH_VA: self._tlbi_nh_va,
            Opcode.TLBI_NH_VAA: self._tlbi_nh_vaa,
            Opcode.TLBI_NSNH_ALL: self._tlbi_nsnh_all,
            Opcode.SYNC: self._sync,
        }
        if config.stage2:
            carry_out |= {Opcode.TLBI_S12_VMALL: self._tlbi_s12_vmall, Opcode.TLBI_S2_IPA: self._tlbi_s2_ipa}
        if config.stalls:
            carry_out |= {Opcode.RESUME: self._resume, Opcode.STALL_TERM: self._stall_term}
        if config.ats:
            carry_out[Opcode.ATC_INV] = self._atc_inv
        if config.priq_bits:
            carry_out[Opcode.PRI_RESP] = self._pri_resp
        self._carry_out = carry_out

    def __call__(self, first: int, second: int) -> Consumed:
        """Carry out the command of two dwords."""
        handler = self._carry_out.get(first & int(Cfgi0.OPCODE))
        return Consumed.ILLEGAL if handler is None else handler(first, second)

    # -- configuration ----------------------------------------------------------------------------------------------

    def _prefetch(self, first: int, _: int) -> Consumed:
        return Consumed.ILLEGAL if Cfgi0(first).SSEC else Consumed.DONE

    def _cfgi_ste(self, first: int, _: int) -> Consumed:
        return self._forget_streams(first, 0)

    def _cfgi_ste_range(self, first: int, second: int) -> Consumed:
        span = CfgiRange1(second).RANGE
        return self._forget_streams(first, 32 if span == ALL_STREAMS else span + 1)

    def _forget_streams(self, first: int, bits: int) -> Consumed:
        """Forget the STEs of all streams that differ from the one given in the lowest ``bits`` only, and their CDs."""
        command = Cfgi0(first)
        if command.SSEC:
            return Consumed.ILLEGAL
        sid = command.SID >> bits
        self._caches.streams.drop_if(lambda key: key >> bits == sid)
        self._caches.contexts.drop_if(lambda key: key[0] >> bits == sid)
        return Consumed.DONE

    def _cfgi_cd(self, first: int, _: int) -> Consumed:
        command = Cfgi0(first)
        if command.SSEC:
            return Consumed.ILLEGAL
        self._caches.contexts.drop((command.SID, command.SSID))
        return Consumed.DONE

    def _cfgi_cd_all(self, first: int, _: int) -> Consumed:
        command = Cfgi0(first)
        if command.SSEC:
            return Consumed.ILLEGAL
        self._caches.contexts.drop_if(lambda key: key[0] == command.SID)
        return Consumed.DONE

    # -- translations -----------------------------------------------------------------------------------------------

    def _vmid(self, command: Tlbi0) -> int:
        return command.VMID if self._has_stage2 else 0

    def _tlbi_nh_all(self, first: int, _: int) -> Consumed:
        self._caches.stage1.drop_vmid(self._vmid(Tlbi0(first)))
        return Consumed.DONE

    def _tlbi_nh_asid(self, first: int, _: int) -> Consumed:
        command = Tlbi0(first)
        self._caches.stage1.drop_asid(self._vmid(command), command.ASID)
        return Consumed.DONE

    def _tlbi_nh_va(self, first: int, second: int) -> Consumed:
        command = Tlbi0(first)
        return self._drop(self._caches.stage1, command, second, self._vmid(command), command.ASID)

    def _tlbi_nh_vaa(self, first: int, second: int) -> Consumed:
        command = Tlbi0(first)
        return self._drop(self._caches.stage1, command, second, self._vmid(command), None, every_asid=True)

    def _tlbi_s2_ipa(self, first: int, second: int) -> Consumed:
        command = Tlbi0(first)
        return self._drop(self._caches.stage2, command, second, command.VMID, None)

    def _drop(
        self, cache: Translations, first: Tlbi0, second: int, vmid: int, asid: int | None, *, every_asid: bool = False
    ) -> Consumed:
        """Forget what translates an address, or a range of them."""
        dword = Tlbi1(second)
        address, granule = dword & int(Tlbi1.ADDR), 2 * dword.TG + 10
        if not dword.TG:
            cache.drop(address, 1, vmid, asid, every_asid=every_asid)
            return Consumed.DONE
        has_level = dword.TTL and (dword.TG, dword.TTL) != (2, 1)  # 16 KiB pages have no blocks at level 1
        if not (first.NUM or first.SCALE or has_level):  # reserved: a granule that says nothing (4.4.1.1)
            return Consumed.ILLEGAL
        cache.drop(address, first.NUM + 1 << first.SCALE + granule, vmid, asid, every_asid=every_asid)
        return Consumed.DONE

    def _tlbi_s12_vmall(self, first: int, _: int) -> Consumed:
        vmid = Tlbi0(first).VMID
        self._caches.stage1.drop_vmid(vmid)
        self._caches.stage2.drop_vmid(vmid)
        return Consumed.DONE

    def _tlbi_nsnh_all(self, _: int, __: int) -> Consumed:
        self._caches.stage1.clear()
        self._caches.stage2.clear()
        return Consumed.DONE

    # -- stalled transactions ---------------------------------------------------------------------------------------

    def _resume(self, first: int, second: int) -> Consumed:
        command = Resume0(first)
        if command.SSEC:
            return Consumed.ILLEGAL
        self._stalls.resume(command.SID, Resume1(second).STAG, Outcome.RETRY if command.AC else Outcome.ABORT)
        return Consumed.DONE

    def _stall_term(self, first: int, _: int) -> Consumed:
        command = Resume0(first)
        if command.SSEC:
            return Consumed.ILLEGAL
        self._stalls.abort(command.SID)
        return Consumed.DONE

    # -- caches of endpoints ----------------------------------------------------------------------------------------

    def _atc_inv(self, first: int, second: int) -> Consumed:
        command, span = Cfgi0(first), AtcInv1(second)
        if command.SSEC or span.SIZE > ALL_ADDRESSES:
            return Consumed.ILLEGAL
        if self._is_on():  # otherwise it is ignored (4.5.1)
            bits = 12 + span.SIZE
            begin = (second & int(AtcInv1.ADDR)) >> bits << bits
            has_ssid = bool(command.SSV and self._has_substreams)
            ssid = command.SSID if has_ssid else None
            told = Invalidation(begin, begin + (1 << bits) - 1, ssid, has_ssid and bool(command.GLOBAL))
            self._invalidations.send(command.SID, told)
        return Consumed.DONE

    def _pri_resp(self, first: int, second: int) -> Consumed:
        command, answer = Cfgi0(first), PriResp1(second)
        if command.SSEC or answer.RESP not in _RESPONSES:
            return Consumed.ILLEGAL
        if self._is_on():
            self._requests.respond(command.SID, answer.PRGINDEX, _RESPONSES[PriResponse(answer.RESP)])
        return Consumed.DONE

    # -- completion -------------------------------------------------------------------------------------------------

    def _sync(self, first: int, second: int) -> Consumed:
        """Whatever was before it is complete already, but for invalidations that ATCs have not answered. SEV is not
        told: the SMMU has no wire for it (IDR0.SEV is 0).
        """
        signal = Sync0(first).CS
        if signal > Completion.SEV:
            return Consumed.ILLEGAL
        done = Consumed.SIGNALLED if signal == Completion.IRQ else Consumed.DONE
        wait = self._invalidations.wait()
        if wait is None:
            return done
        self._hold(wait, lambda: done if self._invalidations.end() else Consumed.LATE, (first, second))
        return Consumed.HELD
