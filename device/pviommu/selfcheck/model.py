"""A model of the engine that works page by page: dicts and loops, slow and obvious. It shares no code with the
engine."""

__all__ = ["Answer", "Model"]

Answer = tuple[int, str | None, int | None]  # pages done or the new context; why not all; the first dfn refused


class Model:
    def __init__(self, max_contexts: int, pool_pages: int, ram: list[range], aperture_bits: int, identity: bool):
        self.max_contexts, self.pool_pages, self.ram, self.identity = max_contexts, pool_pages, ram, identity
        self.mmio: list[range] = []
        self.limit, self.reserved = 1 << aperture_bits - 12, range(0xFEE00, 0xFEF00)
        self.levels = (9, 18) if aperture_bits <= 39 else (9, 18, 27)  # tables of a page, the root left out
        self.pages: dict[int, dict[int, tuple[int, int]]] = {}  # context: {dfn: (gfn, access bits)}
        self.tables: dict[int, dict[tuple[int, int], int]] = {}  # context: {(level, place): pages mapped through it}
        self.attached, self.blocked, self.held = dict[int, int](), set[int](), set[int]()  # stream: context; streams

    def usage(self) -> tuple[int, int, int, int]:
        used = len(self.pages) + sum(map(len, self.tables.values()))
        return len(self.pages), used, self.pool_pages, sum(map(len, self.pages.values()))

    def alloc(self, clone: bool) -> Answer:
        ctx = next((ctx for ctx in range(1, self.max_contexts + 1) if ctx not in self.pages), 0)
        if not ctx or self.usage()[1] >= self.pool_pages:
            return 0, "POOL_EXHAUSTED" if ctx else "NO_FREE_CONTEXT", None
        self.pages[ctx], self.tables[ctx] = {}, {}
        for gfn in (gfn for part in self.ram if clone for gfn in part if gfn < self.limit):
            if gfn not in self.reserved and self.map(ctx, gfn, gfn, 1, 3)[1]:
                return self.free(ctx, True)[0], "POOL_EXHAUSTED", None
        return ctx, None, None

    def free(self, ctx: int, reattach: bool) -> Answer:
        inside = [stream for stream, at in self.attached.items() if at == ctx]
        if ctx not in self.pages or (inside and not reattach):
            return 0, "ENDPOINTS_ATTACHED" if ctx in self.pages else "NO_DOMAIN" if ctx else "DEFAULT_CONTEXT", None
        del self.pages[ctx], self.tables[ctx]
        self.attached |= dict.fromkeys(inside, 0)
        return 0, None, None

    def attach(self, stream: int, ctx: int) -> Answer:
        if stream not in self.attached or (ctx and ctx not in self.pages):
            return 0, "NO_DOMAIN" if stream in self.attached else "NO_ENDPOINT", None
        self.attached[stream], self.blocked, self.held = ctx, self.blocked - {stream}, self.held - {stream}
        return 0, None, None

    def hold(self, stream: int) -> Answer:
        if not (answer := self.attach(stream, 0))[1]:
            self.blocked, self.held = self.blocked | {stream}, self.held | {stream}
        return answer

    def unblock(self, stream: int) -> None:
        self.blocked -= {stream} - self.held

    def reset(self) -> None:
        self.blocked, self.held = self.blocked | {stream for stream, ctx in self.attached.items() if ctx}, set()
        self.attached, self.pages, self.tables = dict.fromkeys(self.attached, 0), {}, {}

    def refused(self, ctx: int, dfn: int, nr: int, access: int = 3) -> Answer | None:
        if ctx not in self.pages or (nr and not access):
            return (0, "NO_ACCESS", dfn) if ctx in self.pages else (0, "NO_DOMAIN" if ctx else "NOT_PAGING", None)
        return (0, "OUT_OF_APERTURE", max(dfn, self.limit)) if nr and dfn + nr > self.limit else None

    def map(self, ctx: int, dfn: int, gfn: int, nr: int, access: int, ram_only: bool = True) -> Answer:
        if refused := self.refused(ctx, dfn, nr, access):
            return refused
        pages, tables = self.pages[ctx], self.tables[ctx]
        for at in range(dfn, dfn + nr):
            needed, stop = [(level, at >> level) for level in self.levels], None
            if (ram_only and not any(gfn in part for part in (*self.ram, *self.mmio))) or gfn >= 1 << 52:
                stop = "NOT_RAM"
            elif at in self.reserved or at in pages:
                stop = "RESERVED" if at in self.reserved else "MAPPED"
            elif missing := sum(table not in tables for table in needed):
                stop = "POOL_EXHAUSTED" if self.usage()[1] + missing > self.pool_pages else None
            if stop:
                return at - dfn, stop, at
            pages[at], gfn = (gfn, access), gfn + 1
            tables.update([(table, tables.get(table, 0) + 1) for table in needed])
        return nr, None, None

    def unmap(self, ctx: int, dfn: int, nr: int) -> Answer:
        if refused := self.refused(ctx, dfn, nr):
            return refused
        pages, tables = self.pages[ctx], self.tables[ctx]
        for at in range(dfn, dfn + nr):
            if at not in pages:
                return at - dfn, "RESERVED" if at in self.reserved else "NOT_MAPPED", at
            del pages[at]
            for table in [(level, at >> level) for level in self.levels]:
                tables[table] -= 1
                if not tables[table]:
                    del tables[table]
        return nr, None, None

    def find(self, ctx: int, dfn: int) -> tuple[int, int] | str:  # gfn and access bits, or why there is no page
        if (ctx and dfn >= self.limit) or (not ctx and not self.identity):
            return "OUT_OF_APERTURE" if ctx else "BLOCKED"
        identity = not ctx and any(dfn in part for part in (*self.ram, *self.mmio))
        found = (dfn, 3) if identity else self.pages.get(ctx, {}).get(dfn, "NOT_MAPPED")
        return "RESERVED" if dfn in self.reserved else found

    def translate(self, stream: int, iova: int, length: int, want: int) -> list[tuple[int, int]] | tuple[int, str]:
        if stream in self.blocked or iova + length > 1 << 64:
            return iova, "BLOCKED" if stream in self.blocked else "OUT_OF_APERTURE"
        runs, end = [(0, 0)], iova + length
        while iova < end:
            found, size = self.find(self.attached[stream], iova >> 12), min(4096 - iova % 4096, end - iova)
            if isinstance(found, str) or want & ~found[1]:
                return iova, found if isinstance(found, str) else "NO_PERMISSION"
            runs, iova = [*runs, (found[0] << 12 | iova % 4096, size)], iova + size
        return runs[1:]
