"""The reference model, extended by what the Xen profiles do not use: map calls and unmap modes, clones that follow
memory, direct regions, lower limits. Page by page like the model, and without code of the engine."""

from pviommu.selfcheck.model import Model

MSI = range(0xFEE00, 0xFEF00)


class ExtendedModel(Model):
    def __init__(self, max_contexts, pool_pages, ram, regions=None):
        self.regions, self.direct = regions or {}, {}  # stream: [range]; context: {range: users}
        self.calls, self.call = {}, 0  # context: {dfn: map call that made it}
        self.clones = {}  # context: [pages that are still the clone's, pages that the guest edited]
        super().__init__(max_contexts, pool_pages, ram, 39, True)

    def usage(self):
        contexts, used, total, mapped = super().usage()
        for users in self.direct.values():
            pages = {dfn for region in users for dfn in region}
            used += sum(len({dfn >> level for dfn in pages}) for level in self.levels)
        return contexts, used, total, mapped

    def is_direct(self, ctx, dfn):
        return any(dfn in region for region in self.direct.get(ctx, ()))

    def find(self, ctx, dfn):
        return (dfn, 3) if self.is_direct(ctx, dfn) else super().find(ctx, dfn)

    # contexts

    def alloc(self, clone):
        self.call += 1
        answer = super().alloc(clone)
        if clone and not answer[1]:
            ctx = answer[0]
            self.clones[ctx] = [set(self.pages[ctx]), set()]
            self.new_calls(ctx, self.pages[ctx])
        return answer

    def free(self, ctx, reattach):
        answer = super().free(ctx, reattach)
        if not answer[1]:
            for part in (self.direct, self.calls, self.clones):
                part.pop(ctx, None)
        return answer

    def attach(self, stream, ctx):
        old = self.attached.get(stream)
        users, regions = self.direct.get(ctx, {}), self.regions.get(stream, [])
        if stream in self.attached and ctx in self.pages and ctx != old:
            new = [region for region in regions if region not in users]
            pages = {dfn for region in new for dfn in region}
            others = any(self.is_direct(ctx, dfn) for dfn in pages)
            if others or any(self.pages[ctx].get(dfn, (dfn, 3)) != (dfn, 3) for dfn in pages):
                return 0, "RESERVED_CONFLICT", None
            self.direct[ctx] = users | {region: users.get(region, 0) + 1 for region in regions}
            if self.usage()[1] > self.pool_pages:
                self.direct[ctx] = users
                return 0, "POOL_EXHAUSTED", None
        answer = super().attach(stream, ctx)
        if not answer[1] and ctx != old and old in self.direct:
            users = self.direct[old]
            users.update((region, users[region] - 1) for region in regions)
            self.direct[old] = {region: count for region, count in users.items() if count}
        return answer

    def reset(self):
        super().reset()
        self.direct, self.calls, self.clones = {}, {}, {}

    def set_ram(self, ram):
        before, self.ram = {gfn for part in self.ram for gfn in part}, ram
        now = {gfn for part in ram for gfn in part}
        for ctx, (own, _) in sorted(self.clones.items()):
            gone = sorted(own & before - now)
            for dfn in gone:
                super().unmap(ctx, dfn, 1)
            own -= set(gone)
            for dfn in gone:
                self.separate(ctx, dfn + 1)
        for ctx, (own, edited) in sorted(self.clones.items()):
            added = []
            for dfn in sorted(now - before - edited - set(MSI)):
                if dfn < self.limit and dfn not in self.pages[ctx]:
                    if super().map(ctx, dfn, dfn, 1, 3)[1]:
                        break
                    added.append(dfn)
            own |= set(added)
            self.new_calls(ctx, added)

    def new_calls(self, ctx, dfns):
        """Each run of these pages is a map call."""
        calls = self.calls.setdefault(ctx, {})
        self.call += 1
        before = None
        for dfn in sorted(dfns):
            self.call += before != dfn - 1
            calls[dfn], before = self.call, dfn

    # mappings

    def map(self, ctx, dfn, gfn, nr, access, ram_only=True, continues=False):
        if direct := self.direct.get(ctx):  # which few contexts have, and clones are mapped page by page
            self.reserved = {*MSI, *(at for region in direct for at in region)}
        answer = super().map(ctx, dfn, gfn, nr, access, ram_only)
        self.reserved = MSI
        pages, calls = self.pages.get(ctx, {}), self.calls.setdefault(ctx, {})
        own = self.clones.get(ctx, [()])[0]
        self.call += 1
        joins = continues and pages.get(dfn - 1) == (gfn - 1, access) and dfn - 1 not in own
        call = calls[dfn - 1] if joins else self.call
        calls.update((at, call) for at in range(dfn, dfn + answer[0]))
        return answer

    def unmap(self, ctx, dfn, nr, mode="UNTIL_HOLE"):
        if refused := self.refused(ctx, dfn, nr):
            return refused
        end = dfn + nr
        if mode == "UNTIL_HOLE":
            closed = next((at for at in range(dfn, end) if self.is_direct(ctx, at)), end)
            done, stop, at = super().unmap(ctx, dfn, closed - dfn)
            if not stop and closed < end:
                stop, at = "RESERVED", closed
            removed = range(dfn, dfn + done)
        else:
            at = self.cut(ctx, dfn, end) if nr else None
            stop = None if at is None else "CUT"
            if stop and mode == "CHECK_ENDS":
                return 0, stop, at
            removed = range(dfn, end if at is None else at)
            present = [page for page in removed if page in self.pages[ctx]]
            done = len(present)
            for page in present:
                super().unmap(ctx, page, 1)
        if ctx in self.clones and done:
            own, edited = self.clones[ctx]
            own -= set(removed)
            edited |= {page for page in removed if any(page in part for part in self.ram)}
        self.separate(ctx, removed.stop)
        return done, stop, at

    def separate(self, ctx, dfn):
        """What is left behind a cut is a call of its own."""
        pages, calls = self.pages[ctx], self.calls.setdefault(ctx, {})
        self.call += 1
        if dfn in pages and dfn - 1 not in pages:
            old = calls[dfn]
            while dfn in pages and calls[dfn] == old:
                calls[dfn], dfn = self.call, dfn + 1

    def cut(self, ctx, first, end):
        pages, calls = self.pages[ctx], self.calls.setdefault(ctx, {})
        for inner, outer in ((first, first - 1), (end - 1, end)):
            if inner in pages and outer in pages and calls[inner] == calls[outer]:
                return min(dfn for dfn in range(first, end) if dfn in pages and calls[dfn] == calls[inner])
        return None

    def runs(self, ctx):
        """(dfn, gfn, nr, access) of what each map call still maps, joined where frames are adjacent."""
        runs = []
        for dfn, (gfn, access) in sorted(self.pages[ctx].items()):
            if runs and self.calls[ctx].get(dfn - 1) == self.calls[ctx][dfn] and runs[-1][0] + runs[-1][2] == dfn:
                runs[-1][2] += 1
            else:
                runs.append([dfn, gfn, 1, access])
        return [tuple(run) for run in runs]
