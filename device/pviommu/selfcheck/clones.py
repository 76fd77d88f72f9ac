"""The model with clones that follow guest RAM: they lose pages of theirs that are unplugged, and map what is
plugged."""

from __future__ import annotations

from .model import Answer, Model

__all__ = ["FollowingModel"]


class FollowingModel(Model):
    """A clone owns the pages that it has mapped by itself until the guest unmaps them; it never touches those again."""

    _owned: dict[int, dict[int, bool]]
    """clone -> {dfn: True if it is as the clone has mapped it, False if the guest has unmapped it}"""

    def alloc(self, clone: bool) -> Answer:
        self._owned = {ctx: owned for ctx, owned in getattr(self, "_owned", {}).items() if ctx in self.pages}
        answer = super().alloc(clone)
        if clone and answer[0]:
            self._owned[answer[0]] = dict.fromkeys(self.pages[answer[0]], True)
        return answer

    def unmap(self, ctx: int, dfn: int, nr: int) -> Answer:
        answer = super().unmap(ctx, dfn, nr)
        if ctx in self._clones():
            ram = [range(max(part.start, dfn), min(part.stop, dfn + answer[0])) for part in self.ram]
            self._owned[ctx].update((at, False) for part in ram for at in part)
        return answer

    def plug(self, ram: list[range]) -> None:
        """Guest RAM is now ``ram``."""
        before, self.ram = self.ram, ram
        gone = [gfn for part in before if part not in ram for gfn in part]
        come = [gfn for part in ram if part not in before for gfn in part]
        clones = self._clones()
        for ctx in clones:
            for gfn in gone:
                if self._owned[ctx].get(gfn):
                    del self._owned[ctx][gfn]
                    super().unmap(ctx, gfn, 1)
        for ctx in clones:
            self._grow(ctx, come)

    def _clones(self) -> list[int]:
        return sorted(ctx for ctx in getattr(self, "_owned", {}) if ctx in self.pages)

    def _grow(self, ctx: int, frames: list[int]) -> None:
        owned, pages = self._owned[ctx], self.pages[ctx]
        for gfn in frames:
            if gfn < self.limit and gfn not in self.reserved and gfn not in owned and gfn not in pages:
                if self.map(ctx, gfn, gfn, 1, 3)[1]:  # the pool is exhausted
                    return
                owned[gfn] = True
