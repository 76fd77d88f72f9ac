// SPDX-License-Identifier: GPL-2.0-only
/* Tests of the PV-IOMMU: contexts, attaching to them, and their limits. */

#define pr_fmt(fmt) "pviommu_test: " fmt

#include <linux/pci.h>

#include "pviommu_test.h"

static void pvt_ids_lowest_free(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u16 ids[2] = {}, again = 0;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(ids); i++)
		EXPECT_EQ(ktap, pvt_alloc(t, 0, &ids[i]), 0);
	EXPECT(ktap, ids[0] && ids[0] < ids[1]);
	EXPECT_EQ(ktap, pvt_free(t, ids[0], 0), 0);
	EXPECT_EQ(ktap, pvt_alloc(t, 0, &again), 0);
	EXPECT_EQ(ktap, again, ids[0]);
	for (i = 0; i < ARRAY_SIZE(ids); i++)
		EXPECT_EQ(ktap, pvt_free(t, ids[i], 0), 0);
}

static void pvt_free_nothing(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u16 id = 0;

	EXPECT_EQ(ktap, pvt_free(t, PVIOMMU_DEFAULT_CONTEXT, 0), -EINVAL);
	EXPECT_EQ(ktap, pvt_free(t, PVT_NO_CONTEXT, 0), -ENOENT);
	EXPECT_EQ(ktap, pvt_alloc(t, 0, &id), 0);
	EXPECT_EQ(ktap, pvt_free(t, id, 0), 0);
	EXPECT_EQ(ktap, pvt_free(t, id, 0), -ENOENT);
}

static void pvt_contexts_run_out(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	unsigned int free, count = 0;
	struct pviommu_usage usage;
	u16 *ids, id;
	int ret;

	if (!EXPECT_EQ(ktap, pviommu_raw_ops.usage(t->pv, &usage), 0))
		return;
	free = t->caps->max_contexts - usage.contexts;
	ids = kcalloc(free + 1, sizeof(*ids), GFP_KERNEL);
	if (!EXPECT(ktap, ids))
		return;
	do {
		id = PVT_NO_CONTEXT;
		ret = pvt_alloc(t, 0, &id);
		if (!ret)
			ids[count++] = id;
	} while (!ret && count <= free);
	EXPECT_EQ(ktap, ret, -ENOSPC);
	EXPECT_EQ(ktap, id, PVT_NO_CONTEXT);
	EXPECT_EQ(ktap, count, free);
	while (count)
		EXPECT_EQ(ktap, pvt_free(t, ids[--count], 0), 0);
	if (EXPECT_EQ(ktap, pvt_alloc(t, 0, &id), 0))
		EXPECT_EQ(ktap, pvt_free(t, id, 0), 0);
	kfree(ids);
}

static void pvt_two_contexts(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u16 other = 0;
	u32 done;

	if (!EXPECT(ktap, t->engine[1]) || !EXPECT_EQ(ktap, pvt_alloc(t, 0, &other), 0))
		return;
	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 1, PVT_RW, &done), 0);
	EXPECT_EQ(ktap, pvt_map(t, other, PVT_DFN, t->gfn + 1, 1, PVT_RW, &done), 0);
	EXPECT_EQ(ktap, pvt_reattach(t, t->sbdf[1], other), 0);
	pvt_expect_fill(ktap, t, 0, pvt_iova(PVT_DFN), PVT_PAGE_SIZE, 0x21);
	pvt_expect_fill(ktap, t, 1, pvt_iova(PVT_DFN), PVT_PAGE_SIZE, 0x22);
	EXPECT(ktap, pvt_holds(pvt_page(t, 0), 0x21, PVT_PAGE_SIZE));
	EXPECT(ktap, pvt_holds(pvt_page(t, 1), 0x22, PVT_PAGE_SIZE));
	EXPECT_EQ(ktap, pvt_reattach(t, t->sbdf[1], t->home[1]), 0);
	EXPECT_EQ(ktap, pvt_free(t, other, 0), 0);
}

static void pvt_one_context(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pvdt_request request = pvt_fill(pvt_iova(PVT_DFN), 8, 0x25);
	u32 done;

	if (!EXPECT(ktap, t->engine[1]))
		return;
	EXPECT_EQ(ktap, pvt_reattach(t, t->sbdf[1], ctx), 0);
	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 1, PVT_RW, &done), 0);
	pvt_expect_fill(ktap, t, 0, pvt_iova(PVT_DFN), 16, 0x23);
	pvt_expect_fill(ktap, t, 1, pvt_iova(PVT_DFN) + 16, 16, 0x24);
	EXPECT(ktap, pvt_holds(pvt_page(t, 0), 0x23, 16));
	EXPECT(ktap, pvt_holds(pvt_page(t, 0) + 16, 0x24, 16));
	EXPECT_EQ(ktap, pvt_unmap(t, ctx, PVT_DFN, 1, &done), 0);
	pvt_expect_fault(ktap, t, 1, &request, pvt_iova(PVT_DFN), PVIOMMU_EVENT_NOT_MAPPED,
			 PVIOMMU_ACCESS_WRITE, ctx);
	request = pvt_fill(pvt_iova(PVT_DFN), 8, 0x25);
	pvt_expect_fault(ktap, t, 0, &request, pvt_iova(PVT_DFN), PVIOMMU_EVENT_NOT_MAPPED,
			 PVIOMMU_ACCESS_WRITE, ctx);
	EXPECT_EQ(ktap, pvt_reattach(t, t->sbdf[1], t->home[1]), 0);
}

static void pvt_reattach_at_once(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u16 other = 0;
	u32 done;

	if (!EXPECT_EQ(ktap, pvt_alloc(t, 0, &other), 0))
		return;
	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 1, PVT_RW, &done), 0);
	EXPECT_EQ(ktap, pvt_map(t, other, PVT_DFN, t->gfn + 1, 1, PVT_RW, &done), 0);
	pvt_expect_fill(ktap, t, 0, pvt_iova(PVT_DFN), PVT_PAGE_SIZE, 0x31);
	EXPECT_EQ(ktap, pvt_reattach(t, t->sbdf[0], other), 0);
	pvt_expect_fill(ktap, t, 0, pvt_iova(PVT_DFN), PVT_PAGE_SIZE, 0x32);
	EXPECT(ktap, pvt_holds(pvt_page(t, 0), 0x31, PVT_PAGE_SIZE));
	EXPECT(ktap, pvt_holds(pvt_page(t, 1), 0x32, PVT_PAGE_SIZE));
	EXPECT_EQ(ktap, pvt_reattach(t, t->sbdf[0], ctx), 0);
	EXPECT_EQ(ktap, pvt_free(t, other, 0), 0);
}

static void pvt_reattach_refused(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u32 done, stream;
	u16 found;

	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 1, PVT_RW, &done), 0);
	EXPECT_EQ(ktap, pvt_reattach(t, PVT_NO_SBDF, ctx), t->profile->unknown_function);
	/* even if the context is wrong too */
	EXPECT_EQ(ktap, pvt_reattach(t, PVT_NO_SBDF, PVT_NO_CONTEXT),
		  t->profile->unknown_function);
	EXPECT_EQ(ktap, pvt_reattach(t, t->sbdf[0], PVT_NO_CONTEXT), -ENOENT);
	EXPECT_EQ(ktap, pvt_endpoint(t, t->sbdf[0], &stream, &found), 0);
	EXPECT_EQ(ktap, stream, t->stream[0]);
	EXPECT_EQ(ktap, found, ctx);
	pvt_expect_fill(ktap, t, 0, pvt_iova(PVT_DFN), PVT_PAGE_SIZE, 0x33);
	EXPECT(ktap, pvt_holds(pvt_page(t, 0), 0x33, PVT_PAGE_SIZE));
}

static void pvt_free_busy(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u32 done;

	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 1, PVT_RW, &done), 0);
	EXPECT_EQ(ktap, pvt_free(t, ctx, 0), -EBUSY);
	pvt_expect_mapped(ktap, t, ctx, PVT_DFN, t->gfn, 1);
	pvt_expect_fill(ktap, t, 0, pvt_iova(PVT_DFN), PVT_PAGE_SIZE, 0x34);
	EXPECT(ktap, pvt_holds(pvt_page(t, 0), 0x34, PVT_PAGE_SIZE));
}

static void pvt_free_to_default(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u16 other = 0, found;
	u32 done, stream;

	if (!EXPECT_EQ(ktap, pvt_alloc(t, 0, &other), 0))
		return;
	EXPECT_EQ(ktap, pvt_map(t, other, PVT_DFN, t->gfn, 1, PVT_RW, &done), 0);
	EXPECT_EQ(ktap, pvt_reattach(t, t->sbdf[0], other), 0);
	EXPECT_EQ(ktap, pvt_free(t, other, PVIOMMU_FREE_REATTACH_DEFAULT), 0);
	EXPECT_EQ(ktap, pvt_endpoint(t, t->sbdf[0], &stream, &found), 0);
	EXPECT_EQ(ktap, found, PVIOMMU_DEFAULT_CONTEXT);
	EXPECT_EQ(ktap, pvt_free(t, other, 0), -ENOENT);
	if (!t->caps->identity_default)
		return;
	/* the default context is the identity: the frame is the address */
	pvt_expect_fill(ktap, t, 0, pvt_iova(t->gfn + 1), PVT_PAGE_SIZE, 0x35);
	EXPECT(ktap, pvt_holds(pvt_page(t, 0), PVT_GUARD, PVT_PAGE_SIZE));
	EXPECT(ktap, pvt_holds(pvt_page(t, 1), 0x35, PVT_PAGE_SIZE));
}

static void pvt_clone(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pvdt_request request = pvt_fill(pvt_iova(t->gfn), 8, 0x37);
	u16 clone = 0;
	u32 done;

	if (!EXPECT_EQ(ktap, pvt_alloc(t, PVIOMMU_CREATE_CLONE, &clone), 0))
		return;
	pvt_expect_mapped(ktap, t, clone, t->gfn, t->gfn, PVT_PAGES);
	EXPECT_EQ(ktap, pvt_reattach(t, t->sbdf[0], clone), 0);
	pvt_expect_fill(ktap, t, 0, pvt_iova(t->gfn), PVT_PAGES * PVT_PAGE_SIZE, 0x36);
	EXPECT(ktap, pvt_holds(t->memory, 0x36, PVT_PAGES * PVT_PAGE_SIZE));
	/* and it is a context like any other: it can be edited */
	EXPECT_EQ(ktap, pvt_unmap(t, clone, t->gfn, 1, &done), 0);
	pvt_expect_fault(ktap, t, 0, &request, pvt_iova(t->gfn), PVIOMMU_EVENT_NOT_MAPPED,
			 PVIOMMU_ACCESS_WRITE, clone);
	pvt_expect_fill(ktap, t, 0, pvt_iova(t->gfn + 1), PVT_PAGE_SIZE, 0x38);
	EXPECT_EQ(ktap, pvt_reattach(t, t->sbdf[0], ctx), 0);
	EXPECT_EQ(ktap, pvt_free(t, clone, 0), 0);
}

static void pvt_bindings(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pviommu_command unknown = pvt_vendor(PVIOMMU_VENDOR_OP_BIND, PVT_NO_SBDF,
						    0xfffffff0);
	struct pviommu_command taken = pvt_vendor(PVIOMMU_VENDOR_OP_BIND, PVT_NO_SBDF,
						  t->stream[0]);
	struct pviommu_command elsewhere = pvt_vendor(PVIOMMU_VENDOR_OP_BIND, t->sbdf[0],
						      t->stream[1]);
	struct pviommu_command same = pvt_vendor(PVIOMMU_VENDOR_OP_BIND, t->sbdf[0], t->stream[0]);
	struct pviommu_command unbind = pvt_vendor(PVIOMMU_VENDOR_OP_UNBIND, PVT_NO_SBDF, 0);
	struct pviommu_command query = pvt_vendor(PVIOMMU_VENDOR_OP_QUERY_ENDPOINT, PVT_NO_SBDF, 0);

	EXPECT_EQ(ktap, pvt_submit(t, &unknown), -ENODEV);
	EXPECT_EQ(ktap, pvt_submit(t, &taken), -EEXIST);
	EXPECT_EQ(ktap, pvt_submit(t, &elsewhere), -EEXIST);
	EXPECT_EQ(ktap, pvt_submit(t, &same), 0);
	EXPECT_EQ(ktap, pvt_submit(t, &unbind), -ENOENT);
	EXPECT_EQ(ktap, pvt_submit(t, &query), -ENOENT);
}

/* All DMA is refused, because the engine is blocked. */
static void pvt_expect_blocked(struct ktap *ktap, struct pvt *t)
{
	struct pvdt_request request = pvt_fill(pvt_iova(PVT_DFN), 8, 0x3a);

	EXPECT_EQ(ktap, pvdt_client_ops.run(t->engine[0], &request, PVDT_POLL), 0);
	EXPECT_EQ(ktap, request.status, PVDT_STATUS_FAULT);
	EXPECT_EQ(ktap, request.reason, PVIOMMU_EVENT_BLOCKED);
	EXPECT(ktap, pvt_holds(pvt_page(t, 0), 0x39, PVT_PAGE_SIZE));
}

/* Nothing of what unblocks an engine after a reset of the IOMMU unblocks it here. */
static void pvt_expect_held(struct ktap *ktap, struct pvt *t)
{
	struct pci_dev *pdev = pvdt_client_ops.pci_dev(t->engine[0]);

	pvt_expect_blocked(ktap, t);
	EXPECT_EQ(ktap, pvdt_client_ops.reset(t->engine[0]), 0);
	pvt_expect_blocked(ktap, t);
	pci_clear_master(pdev);
	pci_set_master(pdev);
	pvt_expect_blocked(ktap, t);
}

static void pvt_block(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pviommu_command block = pvt_vendor(PVIOMMU_VENDOR_OP_BLOCK, t->sbdf[0], 0);
	u32 done;

	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 1, PVT_RW, &done), 0);
	pvt_expect_fill(ktap, t, 0, pvt_iova(PVT_DFN), PVT_PAGE_SIZE, 0x39);
	EXPECT_EQ(ktap, pvt_submit(t, &block), 0);
	pvt_expect_held(ktap, t);
	EXPECT_EQ(ktap, pvt_reattach(t, t->sbdf[0], ctx), 0);
	pvt_expect_fill(ktap, t, 0, pvt_iova(PVT_DFN), PVT_PAGE_SIZE, 0x3b);
	EXPECT(ktap, pvt_holds(pvt_page(t, 0), 0x3b, PVT_PAGE_SIZE));
}

static void pvt_unbind(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pviommu_command unbind = pvt_vendor(PVIOMMU_VENDOR_OP_UNBIND, t->sbdf[0], 0);
	struct pviommu_command bind = pvt_vendor(PVIOMMU_VENDOR_OP_BIND, t->sbdf[0], t->stream[0]);
	u32 done;

	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 1, PVT_RW, &done), 0);
	pvt_expect_fill(ktap, t, 0, pvt_iova(PVT_DFN), PVT_PAGE_SIZE, 0x39);
	EXPECT_EQ(ktap, pvt_submit(t, &unbind), 0);
	pvt_expect_held(ktap, t);
	/* binding it again does not attach it */
	EXPECT_EQ(ktap, pvt_submit(t, &bind), 0);
	pvt_expect_blocked(ktap, t);
	EXPECT_EQ(ktap, pvt_reattach(t, t->sbdf[0], ctx), 0);
	pvt_expect_fill(ktap, t, 0, pvt_iova(PVT_DFN), PVT_PAGE_SIZE, 0x3b);
	EXPECT(ktap, pvt_holds(pvt_page(t, 0), 0x3b, PVT_PAGE_SIZE));
}

const struct ktap_case pvt_context_cases[] = {
	PVT_CONTEXT("context ids are the lowest free ones", pvt_ids_lowest_free),
	PVT_CONTEXT("free of context 0, of none and twice is refused", pvt_free_nothing),
	PVT_CONTEXT("contexts run out with ENOSPC and come back", pvt_contexts_run_out),
	PVT_ATTACHED("two contexts lead one address to different pages", pvt_two_contexts),
	PVT_ATTACHED("two engines share a context, its maps and its unmaps", pvt_one_context),
	PVT_ATTACHED("reattach moves the engine at once", pvt_reattach_at_once),
	PVT_ATTACHED("a refused reattach leaves the engine where it is", pvt_reattach_refused),
	PVT_ATTACHED("free with an engine attached is EBUSY and changes nothing", pvt_free_busy),
	PVT_ATTACHED("free with the flag moves the engine to context 0", pvt_free_to_default),
	PVT_ATTACHED("a clone maps all guest memory 1:1", pvt_clone),
	PVT_CONTEXT("wrong bindings are refused", pvt_bindings),
	PVT_ATTACHED("a blocked engine reaches nothing until it is attached", pvt_block),
	PVT_ATTACHED("an unbound engine reaches nothing until it is bound and attached",
		     pvt_unbind),
};

const unsigned int pvt_nr_context_cases = ARRAY_SIZE(pvt_context_cases);
