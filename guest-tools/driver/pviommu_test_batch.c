// SPDX-License-Identifier: GPL-2.0-only
/* Tests of the PV-IOMMU: operations on what lies in guest memory, under each profile. */

#define pr_fmt(fmt) "pviommu_test: " fmt

#include <linux/io.h>
#include <linux/pgtable.h>

#include "pviommu_test.h"

#define PVT_ELEMENTS		6
#define PVT_MANY_ELEMENTS	1500	/* more than the device takes in one piece */

static struct pviommu_command pvt_batch_command(u16 ctx, u64 address, u32 count, u32 flags)
{
	struct pviommu_command command = pvt_vendor(PVIOMMU_VENDOR_OP_BATCH, 0, 0);

	command.op.batch.address = cpu_to_le64(address);
	command.op.batch.count = cpu_to_le32(count);
	command.op.batch.flags = cpu_to_le32(flags);
	command.op.batch.ctx_no = cpu_to_le16(ctx);
	command.op.batch.done = cpu_to_le32(PVT_UNTOUCHED);
	return command;
}

static int pvt_batch(struct pvt *t, u16 ctx, u64 address, u32 count, u32 flags, u32 *done)
{
	struct pviommu_command command = pvt_batch_command(ctx, address, count, flags);
	int ret = pvt_submit(t, &command);

	*done = le32_to_cpu(command.op.batch.done);
	return ret;
}

/* Elements that map one page after the other, to pages of the tests in reverse order. */
static struct pviommu_map_op *pvt_elements(struct ktap *ktap, struct pvt *t, u32 count)
{
	struct pviommu_map_op *ops = kmalloc_array(count, sizeof(*ops), GFP_KERNEL);
	u32 i;

	if (!EXPECT(ktap, ops))
		return NULL;
	for (i = 0; i < count; i++) {
		ops[i].bfn = cpu_to_le64(PVT_DFN + i);
		ops[i].mfn = cpu_to_le64(t->gfn + PVT_PAGES - 1 - i % PVT_PAGES);
		ops[i].flags = cpu_to_le32(PVT_RW);
		ops[i].status = cpu_to_le32(PVT_UNTOUCHED);
	}
	return ops;
}

static s32 pvt_status(const struct pviommu_map_op *op)
{
	return (s32)le32_to_cpu(READ_ONCE(op->status));
}

/* The first @count elements have this status. */
static void pvt_expect_status(struct ktap *ktap, const struct pviommu_map_op *ops, u32 count,
			      s32 status)
{
	u32 i;

	for (i = 0; i < count; i++)
		if (!EXPECT_EQ(ktap, pvt_status(&ops[i]), status))
			ktap_print(ktap, "# element %u\n", i);
}

static void pvt_batch_maps(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pviommu_map_op *ops = pvt_elements(ktap, t, PVT_ELEMENTS);
	u32 done, i;

	if (!ops)
		return;
	EXPECT_EQ(ktap, pvt_batch(t, ctx, virt_to_phys(ops), PVT_ELEMENTS, 0, &done), 0);
	EXPECT_EQ(ktap, done, PVT_ELEMENTS);
	pvt_expect_status(ktap, ops, PVT_ELEMENTS, 0);
	for (i = 0; i < PVT_ELEMENTS; i++) {
		pvt_expect_fill(ktap, t, 0, pvt_iova(PVT_DFN + i), PVT_PAGE_SIZE, 0x60 + i);
		EXPECT(ktap, pvt_holds(pvt_page(t, PVT_PAGES - 1 - i), 0x60 + i, PVT_PAGE_SIZE));
	}
	EXPECT(ktap, pvt_holds(t->memory, PVT_GUARD, (PVT_PAGES - PVT_ELEMENTS) * PVT_PAGE_SIZE));
	kfree(ops);
}

static void pvt_batch_stops(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pviommu_map_op *ops = pvt_elements(ktap, t, PVT_ELEMENTS);
	struct pvdt_request late = pvt_fill(pvt_iova(PVT_DFN + 3), 8, 0x68);
	u32 done;

	if (!ops)
		return;
	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN + 2, t->gfn, 1, PVT_RW, &done), 0);
	EXPECT_EQ(ktap, pvt_batch(t, ctx, virt_to_phys(ops), PVT_ELEMENTS, 0, &done), -EFAULT);
	EXPECT_EQ(ktap, done, 2);
	pvt_expect_status(ktap, ops, 2, 0);
	pvt_expect_status(ktap, ops + 2, 1, -EADDRINUSE);
	pvt_expect_status(ktap, ops + 3, PVT_ELEMENTS - 3, PVT_UNTOUCHED);
	pvt_expect_mapped(ktap, t, ctx, PVT_DFN, t->gfn + PVT_PAGES - 1, 1);
	pvt_expect_mapped(ktap, t, ctx, PVT_DFN + 1, t->gfn + PVT_PAGES - 2, 1);
	pvt_expect_mapped(ktap, t, ctx, PVT_DFN + 2, t->gfn, 1);
	pvt_expect_nothing(ktap, t, ctx, PVT_DFN + 3, PVT_ELEMENTS - 3);
	pvt_expect_fault(ktap, t, 0, &late, pvt_iova(PVT_DFN + 3), PVIOMMU_EVENT_NOT_MAPPED,
			 PVIOMMU_ACCESS_WRITE, ctx);
	kfree(ops);
}

static void pvt_batch_unmaps(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pviommu_map_op *ops = pvt_elements(ktap, t, PVT_ELEMENTS);
	struct pvdt_request late = pvt_fill(pvt_iova(PVT_DFN), 8, 0x69);
	u32 done, i;

	if (!ops)
		return;
	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 4, PVT_RW, &done), 0);
	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN + 5, t->gfn + 5, 1, PVT_RW, &done), 0);
	pvt_expect_fill(ktap, t, 0, pvt_iova(PVT_DFN), 8, 0x6a);
	for (i = 0; i < PVT_ELEMENTS; i++) {	/* looked at for maps only */
		ops[i].mfn = cpu_to_le64(U64_MAX);
		ops[i].flags = cpu_to_le32(U32_MAX);
	}
	EXPECT_EQ(ktap, pvt_batch(t, ctx, virt_to_phys(ops), PVT_ELEMENTS, PVIOMMU_BATCH_UNMAP,
				  &done), -EFAULT);
	EXPECT_EQ(ktap, done, 4);
	pvt_expect_status(ktap, ops, 4, 0);
	pvt_expect_status(ktap, ops + 4, 1, -ENOENT);
	pvt_expect_status(ktap, ops + 5, 1, PVT_UNTOUCHED);
	pvt_expect_fault(ktap, t, 0, &late, pvt_iova(PVT_DFN), PVIOMMU_EVENT_NOT_MAPPED,
			 PVIOMMU_ACCESS_WRITE, ctx);
	pvt_expect_nothing(ktap, t, ctx, PVT_DFN, 5);
	pvt_expect_mapped(ktap, t, ctx, PVT_DFN + 5, t->gfn + 5, 1);
	kfree(ops);
}

static void pvt_batch_large(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pviommu_map_op *ops = pvt_elements(ktap, t, PVT_MANY_ELEMENTS);
	const u32 last = PVT_MANY_ELEMENTS - 1;
	u32 done;
	u64 at;

	if (!ops)
		return;
	at = virt_to_phys(ops);
	EXPECT_EQ(ktap, pvt_batch(t, ctx, at, PVT_MANY_ELEMENTS, 0, &done), 0);
	EXPECT_EQ(ktap, done, PVT_MANY_ELEMENTS);
	pvt_expect_status(ktap, ops, PVT_MANY_ELEMENTS, 0);
	pvt_expect_fill(ktap, t, 0, pvt_iova(PVT_DFN + last), PVT_PAGE_SIZE, 0x6b);
	EXPECT(ktap, pvt_holds(pvt_page(t, PVT_PAGES - 1 - last % PVT_PAGES), 0x6b, PVT_PAGE_SIZE));
	EXPECT_EQ(ktap, pvt_batch(t, ctx, at, PVT_MANY_ELEMENTS, PVIOMMU_BATCH_UNMAP, &done), 0);
	EXPECT_EQ(ktap, done, PVT_MANY_ELEMENTS);
	pvt_expect_nothing(ktap, t, ctx, PVT_DFN + last, 1);
	kfree(ops);
}

static void pvt_batch_posted(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pviommu_map_op *ops = pvt_elements(ktap, t, PVT_ELEMENTS);
	struct pviommu_command command;

	if (!ops)
		return;
	command = pvt_batch_command(ctx, virt_to_phys(ops), PVT_ELEMENTS, 0);
	EXPECT_EQ(ktap, pvt_post(t, command), 0);
	pvt_expect_fill(ktap, t, 0, pvt_iova(PVT_DFN), PVT_ELEMENTS * PVT_PAGE_SIZE, 0x6c);
	EXPECT(ktap, pvt_holds(pvt_page(t, PVT_PAGES - PVT_ELEMENTS), 0x6c,
			       PVT_ELEMENTS * PVT_PAGE_SIZE));
	pvt_expect_status(ktap, ops, PVT_ELEMENTS, 0);
	kfree(ops);
}

static void pvt_batch_refused(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pviommu_map_op *ops = pvt_elements(ktap, t, PVT_ELEMENTS);
	u64 outside = pvt_iova(pvt_ram_end(t, 0)), inside;
	u32 done;

	if (!ops)
		return;
	inside = virt_to_phys(ops);
	EXPECT_EQ(ktap, pvt_batch(t, ctx, outside, PVT_ELEMENTS, 0, &done), -EFAULT);
	EXPECT_EQ(ktap, pvt_batch(t, ctx, ~7ULL, PVT_ELEMENTS, 0, &done), -EFAULT);
	EXPECT_EQ(ktap, pvt_batch(t, ctx, inside + 4, PVT_ELEMENTS, 0, &done), -EINVAL);
	EXPECT_EQ(ktap, pvt_batch(t, ctx, inside, PVT_ELEMENTS, BIT(1), &done), -EINVAL);
	EXPECT_EQ(ktap, pvt_batch(t, PVIOMMU_DEFAULT_CONTEXT, inside, PVT_ELEMENTS, 0, &done),
		  -EINVAL);
	EXPECT_EQ(ktap, pvt_batch(t, PVT_NO_CONTEXT, inside, PVT_ELEMENTS, 0, &done), -EINVAL);
	EXPECT_EQ(ktap, pvt_batch(t, ctx, inside, 0, 0, &done), 0);
	EXPECT_EQ(ktap, done, 0);
	pvt_expect_status(ktap, ops, PVT_ELEMENTS, PVT_UNTOUCHED);
	pvt_expect_nothing(ktap, t, ctx, PVT_DFN, PVT_ELEMENTS);
	kfree(ops);
}

/* An operation by CALL: its structure is in memory, with its number if the profile has it there. */
static int pvt_call(struct pvt *t, const struct pviommu_command *operation, u64 address)
{
	struct pviommu_command call = pvt_vendor(PVIOMMU_VENDOR_OP_CALL, 0, 0);

	call.op.call.address = cpu_to_le64(address);
	call.op.call.op = cpu_to_le32(operation->slot.op);
	return pvt_submit(t, &call);
}

static void pvt_calls(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pviommu_command map = t->profile->map_command(ctx, PVT_DFN, t->gfn, 2, PVT_RW),
			       *copy;
	struct pviommu_command direct =
		t->profile->map_command(ctx, PVT_DFN + 8, t->gfn + 2, 2, PVT_RW);
	struct pviommu_command unknown = t->profile->command(99);
	u64 outside = pvt_iova(pvt_ram_end(t, 0)), at;

	copy = kmemdup(&map, sizeof(map), GFP_KERNEL);
	if (!EXPECT(ktap, copy))
		return;
	at = virt_to_phys(copy) + offsetof(struct pviommu_command, op);
	EXPECT_EQ(ktap, pvt_call(t, &map, outside), -EFAULT);
	EXPECT_EQ(ktap, pvt_call(t, &map, at + 4), -EINVAL);
	pvt_expect_nothing(ktap, t, ctx, PVT_DFN, 2);
	EXPECT_EQ(ktap, pvt_call(t, &map, at), 0);
	pvt_expect_fill(ktap, t, 0, pvt_iova(PVT_DFN), 2 * PVT_PAGE_SIZE, 0x6d);
	EXPECT(ktap, pvt_holds(pvt_page(t, 0), 0x6d, 2 * PVT_PAGE_SIZE));
	EXPECT_EQ(ktap, t->profile->mapped(copy), 2);
	/* what is written back is what a slot would have held, on error too */
	EXPECT_EQ(ktap, pvt_call(t, &map, at), -EADDRINUSE);
	EXPECT_EQ(ktap, pvt_submit(t, &direct), 0);
	EXPECT_EQ(ktap, pvt_submit(t, &direct), -EADDRINUSE);
	EXPECT_EQ(ktap, t->profile->mapped(copy), t->profile->mapped(&direct));
	*copy = unknown;
	EXPECT_EQ(ktap, pvt_call(t, &unknown, at), t->profile->unknown_operation);
	kfree(copy);
}

const struct ktap_case pvt_batch_cases[] = {
	PVT_ATTACHED("a batch maps each element, and DMA sees it", pvt_batch_maps),
	PVT_ATTACHED("a batch stops at the first fault with EFAULT", pvt_batch_stops),
	PVT_ATTACHED("a batch unmaps, and stops at a hole", pvt_batch_unmaps),
	PVT_ATTACHED("a batch of many elements is carried out whole", pvt_batch_large),
	PVT_ATTACHED("a posted batch is seen by the DMA that follows it", pvt_batch_posted),
	PVT_CONTEXT("a batch outside of memory is EFAULT, a wrong one EINVAL", pvt_batch_refused),
	PVT_ATTACHED("call works on a structure in memory", pvt_calls),
};

const unsigned int pvt_nr_batch_cases = ARRAY_SIZE(pvt_batch_cases);
