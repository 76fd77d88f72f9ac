// SPDX-License-Identifier: GPL-2.0-only
/* Raw operations and DMA for the tests of the PV-IOMMU, and what the tests expect of them. */

#define pr_fmt(fmt) "pv_iommu_test: " fmt

#include "pv_iommu_test.h"

struct pv_command pvt_xen(u16 subop, u16 ctx, u32 flags)
{
	struct pv_command command = { .slot.op_class = PVIOMMU_CLASS_XEN_2024 };

	command.op.head.subop_id = cpu_to_le16(subop);
	command.op.head.ctx_no = cpu_to_le16(ctx);
	command.op.head.flags = cpu_to_le32(flags);
	return command;
}

struct pv_command pvt_own(u8 op, u32 sbdf, u32 stream)
{
	struct pv_command command = { .slot.op_class = PVIOMMU_CLASS_OWN, .slot.op = op };

	command.op.binding.seg = cpu_to_le16(sbdf >> 16);
	command.op.binding.bus = sbdf >> 8;
	command.op.binding.devfn = sbdf;
	command.op.binding.stream = cpu_to_le32(stream);
	return command;
}

struct pv_command pvt_map_command(u16 ctx, u64 dfn, u64 gfn, u32 nr_pages, u32 flags)
{
	struct pv_command command = pvt_xen(PVIOMMU_XEN2024_MAP_PAGES, ctx, flags);

	command.op.map.dfn = cpu_to_le64(dfn);
	command.op.map.gfn = cpu_to_le64(gfn);
	command.op.map.nr_pages = cpu_to_le32(nr_pages);
	return command;
}

struct pv_command pvt_unmap_command(u16 ctx, u64 dfn, u32 nr_pages)
{
	struct pv_command command = pvt_xen(PVIOMMU_XEN2024_UNMAP_PAGES, ctx, 0);

	command.op.unmap.dfn = cpu_to_le64(dfn);
	command.op.unmap.nr_pages = cpu_to_le32(nr_pages);
	return command;
}

int pvt_submit(struct pvt *t, struct pv_command *command)
{
	return pv_iommu_raw_ops.submit(t->pv, command, PV_WAIT_BUSY);
}

int pvt_post(struct pvt *t, struct pv_command command)
{
	return pv_iommu_raw_ops.submit(t->pv, &command, PV_POSTED);
}

int pvt_alloc(struct pvt *t, u32 flags, u16 *ctx)
{
	struct pv_command command = pvt_xen(PVIOMMU_XEN2024_ALLOC_CONTEXT, *ctx, flags);
	int ret = pvt_submit(t, &command);

	*ctx = le16_to_cpu(command.op.head.ctx_no);
	return ret;
}

int pvt_free(struct pvt *t, u16 ctx, u32 flags)
{
	struct pv_command command = pvt_xen(PVIOMMU_XEN2024_FREE_CONTEXT, ctx, flags);

	return pvt_submit(t, &command);
}

int pvt_reattach(struct pvt *t, u32 sbdf, u16 ctx)
{
	struct pv_command command = pvt_xen(PVIOMMU_XEN2024_REATTACH_DEVICE, ctx, 0);

	command.op.reattach.seg = cpu_to_le16(sbdf >> 16);
	command.op.reattach.bus = sbdf >> 8;
	command.op.reattach.devfn = sbdf;
	return pvt_submit(t, &command);
}

int pvt_map(struct pvt *t, u16 ctx, u64 dfn, u64 gfn, u32 nr_pages, u32 flags, u32 *mapped)
{
	struct pv_command command = pvt_map_command(ctx, dfn, gfn, nr_pages, flags);
	int ret;

	command.op.map.mapped = cpu_to_le32(PVT_UNTOUCHED);
	ret = pvt_submit(t, &command);
	*mapped = le32_to_cpu(command.op.map.mapped);
	return ret;
}

int pvt_unmap(struct pvt *t, u16 ctx, u64 dfn, u32 nr_pages, u32 *unmapped)
{
	struct pv_command command = pvt_unmap_command(ctx, dfn, nr_pages);
	int ret;

	command.op.unmap.unmapped = cpu_to_le32(PVT_UNTOUCHED);
	ret = pvt_submit(t, &command);
	*unmapped = le32_to_cpu(command.op.unmap.unmapped);
	return ret;
}

int pvt_lookup(struct pvt *t, u16 ctx, u64 dfn, u64 *gfn)
{
	struct pv_command command = pvt_xen(PVIOMMU_XEN2024_LOOKUP_PAGE, ctx, 0);
	int ret;

	command.op.lookup.gfn = cpu_to_le64(PVT_UNTOUCHED);
	command.op.lookup.dfn = cpu_to_le64(dfn);
	ret = pvt_submit(t, &command);
	*gfn = le64_to_cpu(command.op.lookup.gfn);
	return ret;
}

int pvt_endpoint(struct pvt *t, u32 sbdf, u32 *stream, u16 *ctx)
{
	struct pv_command command = pvt_own(PVIOMMU_OWN_QUERY_ENDPOINT, sbdf, 0);
	int ret = pvt_submit(t, &command);

	*stream = le32_to_cpu(command.op.binding.stream);
	*ctx = le16_to_cpu(command.op.binding.ctx_no);
	return ret;
}

int pvt_event(struct pvt *t, u32 *position, struct pviommu_event *event)
{
	return pv_iommu_raw_ops.next_event(t->pv, position, event, PVT_EVENT_MS);
}

/* Whether lookup finds exactly these pages. */
bool pvt_expect_mapped(struct pv_ktap *ktap, struct pvt *t, u16 ctx, u64 dfn, u64 gfn,
		       u32 nr_pages)
{
	bool holds = true;
	u64 found;
	u32 i;

	for (i = 0; i < nr_pages; i++) {
		holds &= PV_EXPECT_EQ(ktap, pvt_lookup(t, ctx, dfn + i, &found), 0) &&
			 PV_EXPECT_EQ(ktap, found, gfn + i);
	}
	return holds;
}

bool pvt_expect_nothing(struct pv_ktap *ktap, struct pvt *t, u16 ctx, u64 dfn, u32 nr_pages)
{
	bool holds = true;
	u64 found;
	u32 i;

	for (i = 0; i < nr_pages; i++)
		holds &= PV_EXPECT_EQ(ktap, pvt_lookup(t, ctx, dfn + i, &found), -ENOENT);
	return holds;
}

struct pvdt_request pvt_fill(u64 iova, u32 length, u8 byte)
{
	struct pvdt_request request = { .op = PVDT_OP_FILL, .length = length, .dst = iova };

	memset(&request.pattern, byte, sizeof(request.pattern));
	return request;
}

struct pvdt_request pvt_read(u64 iova, u32 length)
{
	struct pvdt_request request = { .op = PVDT_OP_CHECKSUM, .length = length, .src = iova };

	return request;
}

bool pvt_expect_fill(struct pv_ktap *ktap, struct pvt *t, unsigned int engine, u64 iova, u32 length,
		     u8 byte)
{
	struct pvdt_request request = pvt_fill(iova, length, byte);

	return PV_EXPECT_EQ(ktap, pvdt_client_ops.run(t->engine[engine], &request, PVDT_POLL), 0) &&
	       PV_EXPECT_EQ(ktap, request.status, PVDT_STATUS_DONE);
}

/* The descriptor and the event of a refused request agree in all that they tell. */
bool pvt_expect_fault(struct pv_ktap *ktap, struct pvt *t, unsigned int engine,
		      struct pvdt_request *request, u64 iova, u16 reason, u8 access, u16 ctx)
{
	u32 position = pv_iommu_raw_ops.event_position(t->pv);
	struct pviommu_event event;
	bool holds;

	if (!PV_EXPECT_EQ(ktap, pvdt_client_ops.run(t->engine[engine], request, PVDT_POLL), 0))
		return false;
	holds = PV_EXPECT_EQ(ktap, request->status, PVDT_STATUS_FAULT);
	holds &= PV_EXPECT_EQ(ktap, request->detail, iova);
	holds &= PV_EXPECT_EQ(ktap, request->reason, reason);
	holds &= PV_EXPECT_EQ(ktap, request->access, access);
	if (!PV_EXPECT_EQ(ktap, pvt_event(t, &position, &event), 0))
		return false;
	holds &= PV_EXPECT_EQ(ktap, le64_to_cpu(event.iova), iova);
	holds &= PV_EXPECT_EQ(ktap, le16_to_cpu(event.reason), reason);
	holds &= PV_EXPECT_EQ(ktap, event.access, access);
	holds &= PV_EXPECT_EQ(ktap, le32_to_cpu(event.stream), t->stream[engine]);
	holds &= PV_EXPECT_EQ(ktap, le32_to_cpu(event.sbdf), t->sbdf[engine]);
	holds &= PV_EXPECT_EQ(ktap, le16_to_cpu(event.ctx_no), ctx);
	holds &= PV_EXPECT_EQ(ktap, le64_to_cpu(event.length), request->length);
	return holds;
}

void pvt_with_context(struct pv_ktap *ktap, void *subject, unsigned long body)
{
	struct pvt *t = subject;
	u16 ctx = 0;

	memset(t->memory, PVT_GUARD, PVT_PAGES * PAGE_SIZE);
	if (!PV_EXPECT_EQ(ktap, pvt_alloc(t, 0, &ctx), 0))
		return;
	((pvt_body)body)(ktap, t, ctx);
	PV_EXPECT_EQ(ktap, pvt_free(t, ctx, 0), 0);
}

/* The engine goes back to where it was found, before the context is freed. */
void pvt_with_engine(struct pv_ktap *ktap, void *subject, unsigned long body)
{
	struct pvt *t = subject;
	u16 ctx = 0;

	memset(t->memory, PVT_GUARD, PVT_PAGES * PAGE_SIZE);
	if (!PV_EXPECT_EQ(ktap, pvt_alloc(t, 0, &ctx), 0))
		return;
	if (PV_EXPECT_EQ(ktap, pvt_reattach(t, t->sbdf[0], ctx), 0))
		((pvt_body)body)(ktap, t, ctx);
	PV_EXPECT_EQ(ktap, pvt_reattach(t, t->sbdf[0], t->home[0]), 0);
	PV_EXPECT_EQ(ktap, pvt_free(t, ctx, 0), 0);
}
