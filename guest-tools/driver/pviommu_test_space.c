// SPDX-License-Identifier: GPL-2.0-only
/* Raw operations and DMA for the tests of the PV-IOMMU, and what the tests expect of them. */

#define pr_fmt(fmt) "pviommu_test: " fmt

#include "pviommu_test.h"

struct pviommu_command pvt_vendor(u8 op, u32 sbdf, u32 stream)
{
	struct pviommu_command command = { .slot.op_class = PVIOMMU_CLASS_VENDOR, .slot.op = op };

	command.op.binding.seg = cpu_to_le16(sbdf >> 16);
	command.op.binding.bus = sbdf >> 8;
	command.op.binding.devfn = sbdf;
	command.op.binding.stream = cpu_to_le32(stream);
	return command;
}

int pvt_submit(struct pvt *t, struct pviommu_command *command)
{
	return pviommu_raw_ops.submit(t->pv, command, PVIOMMU_WAIT_BUSY);
}

int pvt_post(struct pvt *t, struct pviommu_command command)
{
	return pviommu_raw_ops.submit(t->pv, &command, PVIOMMU_POSTED);
}

int pvt_endpoint(struct pvt *t, u32 sbdf, u32 *stream, u16 *ctx)
{
	struct pviommu_command command = pvt_vendor(PVIOMMU_VENDOR_OP_QUERY_ENDPOINT, sbdf, 0);
	int ret = pvt_submit(t, &command);

	*stream = le32_to_cpu(command.op.binding.stream);
	*ctx = le16_to_cpu(command.op.binding.ctx_no);
	return ret;
}

int pvt_event(struct pvt *t, u32 *position, struct pviommu_event *event)
{
	return pviommu_raw_ops.next_event(t->pv, position, event, PVT_EVENT_MS);
}

u64 pvt_last_dfn(struct pvt *t)
{
	return (1ULL << (t->caps->aperture_bits - PVIOMMU_PAGE_SHIFT)) - 1;
}

/* A frame that begins as many pages of memory, or 0. */
u64 pvt_ram_of(struct pvt *t, u64 pages)
{
	unsigned int i;
	u64 gfn;

	for (i = 0; i < t->caps->nr_ram; i++) {
		gfn = (t->caps->ram[i].start >> PVIOMMU_PAGE_SHIFT) + 1;
		if (gfn + pages <= t->caps->ram[i].last >> PVIOMMU_PAGE_SHIFT)
			return gfn;
	}
	return 0;
}

/* The last pages of a range of guest memory, with none behind them. */
u64 pvt_ram_end(struct pvt *t, u64 pages)
{
	return (t->caps->ram[t->caps->nr_ram - 1].last >> PVIOMMU_PAGE_SHIFT) + 1 - pages;
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

bool pvt_expect_fill(struct ktap *ktap, struct pvt *t, unsigned int engine, u64 iova, u32 length,
		     u8 byte)
{
	struct pvdt_request request = pvt_fill(iova, length, byte);

	return EXPECT_EQ(ktap, pvdt_client_ops.run(t->engine[engine], &request, PVDT_POLL), 0) &&
	       EXPECT_EQ(ktap, request.status, PVDT_STATUS_DONE);
}

/* The descriptor and the event of a refused request agree in all fields. */
bool pvt_expect_fault(struct ktap *ktap, struct pvt *t, unsigned int engine,
		      struct pvdt_request *request, u64 iova, u16 reason, u8 access, u16 ctx)
{
	u32 position = pviommu_raw_ops.event_position(t->pv);
	struct pviommu_event event;
	bool holds;

	if (!EXPECT_EQ(ktap, pvdt_client_ops.run(t->engine[engine], request, PVDT_POLL), 0))
		return false;
	holds = EXPECT_EQ(ktap, request->status, PVDT_STATUS_FAULT);
	holds &= EXPECT_EQ(ktap, request->detail, iova);
	holds &= EXPECT_EQ(ktap, request->reason, reason);
	holds &= EXPECT_EQ(ktap, request->access, access);
	if (!EXPECT_EQ(ktap, pvt_event(t, &position, &event), 0))
		return false;
	holds &= EXPECT_EQ(ktap, le64_to_cpu(event.iova), iova);
	holds &= EXPECT_EQ(ktap, le16_to_cpu(event.reason), reason);
	holds &= EXPECT_EQ(ktap, event.access, access);
	holds &= EXPECT_EQ(ktap, le32_to_cpu(event.stream), t->stream[engine]);
	holds &= EXPECT_EQ(ktap, le32_to_cpu(event.sbdf), t->sbdf[engine]);
	holds &= EXPECT_EQ(ktap, le16_to_cpu(event.ctx_no), ctx);
	holds &= EXPECT_EQ(ktap, le64_to_cpu(event.length), request->length);
	return holds;
}

void pvt_with_context(struct ktap *ktap, void *subject, unsigned long body)
{
	struct pvt *t = subject;
	u16 ctx = 0;

	memset(t->memory, PVT_GUARD, PVT_PAGES * PVT_PAGE_SIZE);
	if (!EXPECT_EQ(ktap, pvt_alloc(t, 0, &ctx), 0))
		return;
	((pvt_body)body)(ktap, t, ctx);
	EXPECT_EQ(ktap, pvt_free(t, ctx, 0), 0);
}

/* The engine goes back to its first context before this context is freed. */
void pvt_with_engine(struct ktap *ktap, void *subject, unsigned long body)
{
	struct pvt *t = subject;
	u16 ctx = 0;

	memset(t->memory, PVT_GUARD, PVT_PAGES * PVT_PAGE_SIZE);
	if (!EXPECT_EQ(ktap, pvt_alloc(t, 0, &ctx), 0))
		return;
	if (EXPECT_EQ(ktap, pvt_reattach(t, t->sbdf[0], ctx), 0))
		((pvt_body)body)(ktap, t, ctx);
	EXPECT_EQ(ktap, pvt_reattach(t, t->sbdf[0], t->home[0]), 0);
	EXPECT_EQ(ktap, pvt_free(t, ctx, 0), 0);
}
