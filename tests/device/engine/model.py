"""The engine by its page-by-page definition: dicts and loops, slow and obvious. Shares no code with the engine."""

RAM, RESERVED_FIRST, RESERVED_LAST = [(0, 0x5FF), (0x800, 0x40FFF)], 0xFEE00, 0xFEEFF
LIMIT = 1 << 27


def is_ram(gfn):
    return any(first <= gfn <= last for first, last in RAM)


def is_reserved(dfn):
    return RESERVED_FIRST <= dfn <= RESERVED_LAST


class Model:
    def __init__(self, max_contexts, pool_pages):
        self.max_contexts, self.pool_pages = max_contexts, pool_pages
        self.pages = {}  # context -> {dfn: (gfn, access, call)}
        self.calls = 0

    def pool_used(self):
        used = 0
        for pages in self.pages.values():
            used += 1 + len({dfn >> 9 for dfn in pages}) + len({dfn >> 18 for dfn in pages})
        return used

    def mapped_pages(self):
        return sum(len(pages) for pages in self.pages.values())

    def alloc(self):
        free = [ctx for ctx in range(1, self.max_contexts + 1) if ctx not in self.pages]
        if not free:
            return None, "NO_FREE_CONTEXT"
        if self.pool_used() + 1 > self.pool_pages:
            return None, "POOL_EXHAUSTED"
        self.pages[free[0]] = {}
        return free[0], None

    def map(self, ctx, dfn, gfn, nr, access):
        if ctx not in self.pages:
            return 0, "NO_CONTEXT" if ctx else "DEFAULT_CONTEXT", None
        if nr and not access:
            return 0, "NO_ACCESS", dfn
        if nr and dfn + nr > LIMIT:
            return 0, "OUT_OF_APERTURE", max(dfn, LIMIT)
        pages = self.pages[ctx]
        self.calls += 1
        for i in range(nr):
            if not is_ram(gfn + i):
                return i, "NOT_RAM", dfn + i
            if is_reserved(dfn + i):
                return i, "RESERVED", dfn + i
            if dfn + i in pages:
                return i, "MAPPED", dfn + i
            pages[dfn + i] = (gfn + i, access, self.calls)
            if self.pool_used() > self.pool_pages:
                del pages[dfn + i]
                return i, "POOL_EXHAUSTED", dfn + i
        return nr, None, None

    def unmap(self, ctx, dfn, nr, mode):
        if ctx not in self.pages:
            return 0, "NO_CONTEXT" if ctx else "DEFAULT_CONTEXT", None
        if nr and dfn + nr > LIMIT:
            return 0, "OUT_OF_APERTURE", max(dfn, LIMIT)
        pages, done = self.pages[ctx], 0
        cut = self.cut(pages, dfn, dfn + nr) if nr and mode != "UNTIL_HOLE" else None
        if cut is not None and mode == "CHECK_ENDS":
            return 0, "CUT", cut
        for i in range(nr):
            if dfn + i == cut:
                return done, "CUT", cut
            if dfn + i not in pages and mode == "UNTIL_HOLE":
                self.separate(pages, dfn + i)
                return i, "RESERVED" if is_reserved(dfn + i) else "NOT_MAPPED", dfn + i
            done += pages.pop(dfn + i, None) is not None
        self.separate(pages, dfn + nr)
        return done, None, None

    def separate(self, pages, dfn):
        """What is left behind a cut is a call of its own."""
        self.calls += 1
        if dfn in pages and dfn - 1 not in pages:
            old = pages[dfn][2]
            while dfn in pages and pages[dfn][2] == old:
                pages[dfn] = (*pages[dfn][:2], self.calls)
                dfn += 1

    @staticmethod
    def cut(pages, first, end):
        for inner, outer in ((first, first - 1), (end - 1, end)):
            if inner in pages and outer in pages and pages[inner][2] == pages[outer][2]:
                return min(dfn for dfn in range(first, end) if dfn in pages and pages[dfn][2] == pages[inner][2])
        return None
