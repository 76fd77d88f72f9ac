// SPDX-License-Identifier: GPL-2.0-only
/* Tests of the DMA test engine apart from copying: other operations, lists, its queue. */

#define pr_fmt(fmt) "pviommu_dmatest: " fmt

#include <linux/crc32.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include "pviommu_abi.h"
#include "pviommu_dmatest_buffer.h"

#define PVDT_WRAP_BATCH		200
#define PVDT_WRAP_BATCHES	3

void pvdt_test_checksum(struct ktap *ktap, void *subject, unsigned long length)
{
	struct pvdt_request request = { .op = PVDT_OP_CHECKSUM, .length = length };
	struct pvdt *engine = subject;
	struct pvdt_buffer buffer;

	if (!EXPECT_EQ(ktap, pvdt_buffer_map(engine, &buffer, length, DMA_TO_DEVICE), 0))
		return;
	pvdt_scribble(buffer.cpu, length, 5);
	pvdt_to_device(engine, &buffer);
	request.src = buffer.iova;
	if (pvdt_expect_done(ktap, engine, &request, PVDT_POLL))
		EXPECT_EQ(ktap, request.checksum, ~crc32_le(~0, buffer.cpu, length) & U32_MAX);
	pvdt_buffer_unmap(engine, &buffer);
}

void pvdt_test_verify(struct ktap *ktap, void *subject, unsigned long planted)
{
	struct pvdt_request fill = { .op = PVDT_OP_FILL, .pattern = PVDT_PATTERN };
	struct pvdt_request verify = { .op = PVDT_OP_VERIFY, .pattern = PVDT_PATTERN };
	struct pvdt *engine = subject;
	struct pvdt_buffer buffer;

	if (!EXPECT_EQ(ktap, pvdt_buffer_map(engine, &buffer, SZ_64K, DMA_BIDIRECTIONAL), 0))
		return;
	fill.length = SZ_64K;
	fill.dst = buffer.iova;
	verify.length = SZ_64K;
	verify.src = buffer.iova;
	if (pvdt_expect_done(ktap, engine, &fill, PVDT_POLL) &&
	    pvdt_expect_done(ktap, engine, &verify, PVDT_POLL)) {
		pvdt_to_cpu(engine, &buffer);
		buffer.cpu[planted] ^= 1;
		pvdt_to_device(engine, &buffer);
		EXPECT_EQ(ktap, pvdt_run(engine, &verify, PVDT_POLL), 0);
		EXPECT_EQ(ktap, verify.status, PVDT_STATUS_MISMATCH);
		EXPECT_EQ(ktap, verify.detail, planted);
	}
	pvdt_buffer_unmap(engine, &buffer);
}

/* Every piece of a list begins in its own window, at an odd offset. */
static size_t pvdt_piece(unsigned int i)
{
	return i * SZ_16K + 2 * i + 7;
}

static const u32 pvdt_src_pieces[] = { 1, 4096, 517, 8192 };
static const u32 pvdt_dst_pieces[] = { 8000, 3, 4097, 706 };

static void pvdt_expect_scattered(struct ktap *ktap, struct pvdt_buffer *src,
				  struct pvdt_buffer *dst, u32 length)
{
	u32 at = 0, end = 0, i;
	u8 *flat;

	flat = kvmalloc(length, GFP_KERNEL);
	if (!EXPECT(ktap, flat))
		return;
	for (i = 0; i < ARRAY_SIZE(pvdt_src_pieces); i++) {
		memcpy(flat + at, src->cpu + pvdt_piece(i), pvdt_src_pieces[i]);
		at += pvdt_src_pieces[i];
	}
	for (i = 0, at = 0; i < ARRAY_SIZE(pvdt_dst_pieces); i++) {
		EXPECT(ktap, !memcmp(dst->cpu + pvdt_piece(i), flat + at, pvdt_dst_pieces[i]));
		EXPECT(ktap, pvdt_guarded(dst->cpu + end, pvdt_piece(i) - end));
		at += pvdt_dst_pieces[i];
		end = pvdt_piece(i) + pvdt_dst_pieces[i];
	}
	EXPECT(ktap, pvdt_guarded(dst->cpu + end, dst->size - end));
	kvfree(flat);
}

/* Four pieces into four others that are cut elsewhere. */
void pvdt_test_scatter_gather(struct ktap *ktap, void *subject, unsigned long param)
{
	const unsigned int pieces = ARRAY_SIZE(pvdt_src_pieces);
	struct pvdt_request request = {
		.op = PVDT_OP_COPY, .flags = PVDT_FLAG_SRC_SG | PVDT_FLAG_DST_SG,
		.src = pvdt_sg_list(0, pieces),
		.dst = pvdt_sg_list(pieces, ARRAY_SIZE(pvdt_dst_pieces)),
	};
	struct pvdt *engine = subject;
	struct pvdt_buffer src, dst;
	unsigned int i;

	if (!EXPECT_EQ(ktap, pvdt_buffer_map(engine, &src, SZ_64K, DMA_TO_DEVICE), 0))
		return;
	if (!EXPECT_EQ(ktap, pvdt_buffer_map(engine, &dst, SZ_64K, DMA_BIDIRECTIONAL), 0))
		goto out;
	pvdt_scribble(src.cpu, src.size, 6);
	pvdt_to_device(engine, &src);
	pvdt_to_device(engine, &dst);
	for (i = 0; i < pieces; i++) {
		pvdt_set_sg(engine, i, src.iova + pvdt_piece(i), pvdt_src_pieces[i]);
		pvdt_set_sg(engine, pieces + i, dst.iova + pvdt_piece(i), pvdt_dst_pieces[i]);
		request.length += pvdt_src_pieces[i];
	}
	if (pvdt_expect_done(ktap, engine, &request, PVDT_POLL)) {
		pvdt_to_cpu(engine, &dst);
		pvdt_expect_scattered(ktap, &src, &dst, request.length);
	}
	pvdt_buffer_unmap(engine, &dst);
out:
	pvdt_buffer_unmap(engine, &src);
}

/* More requests than the queue has descriptors. */
void pvdt_test_wrap(struct ktap *ktap, void *subject, unsigned long param)
{
	struct pvdt *engine = subject;
	struct pvdt_request *requests;
	struct pvdt_buffer buffer;
	unsigned int batch, i;
	int ret;

	requests = kcalloc(PVDT_WRAP_BATCH, sizeof(*requests), GFP_KERNEL);
	if (!EXPECT(ktap, requests))
		return;
	if (!EXPECT_EQ(ktap, pvdt_buffer_map(engine, &buffer, SZ_64K, DMA_TO_DEVICE), 0))
		goto out;
	pvdt_scribble(buffer.cpu, buffer.size, 7);
	pvdt_to_device(engine, &buffer);
	for (batch = 0; batch < PVDT_WRAP_BATCHES; batch++) {
		for (i = 0; i < PVDT_WRAP_BATCH; i++) {
			requests[i].op = PVDT_OP_CHECKSUM;
			requests[i].length = i + 1;
			requests[i].src = buffer.iova + batch * SZ_16K + i * 64;
		}
		ret = pvdt_run_many(engine, requests, PVDT_WRAP_BATCH, PVDT_POLL);
		if (!EXPECT_EQ(ktap, ret, 0))
			break;
		for (i = 0; i < PVDT_WRAP_BATCH; i++) {
			u8 *data = buffer.cpu + batch * SZ_16K + i * 64;

			EXPECT_EQ(ktap, requests[i].status, PVDT_STATUS_DONE);
			EXPECT_EQ(ktap, requests[i].checksum,
				  ~crc32_le(~0, data, i + 1) & U32_MAX);
			if (ktap->failed)
				break;
		}
	}
	pvdt_buffer_unmap(engine, &buffer);
out:
	kfree(requests);
}

void pvdt_test_interrupt(struct ktap *ktap, void *subject, unsigned long param)
{
	struct pvdt_request request = {
		.op = PVDT_OP_FILL, .length = PAGE_SIZE, .pattern = PVDT_PATTERN
	};
	struct pvdt *engine = subject;
	unsigned int before = pvdt_interrupts(engine);
	struct pvdt_buffer buffer;

	if (!EXPECT_EQ(ktap, pvdt_buffer_map(engine, &buffer, PAGE_SIZE, DMA_FROM_DEVICE), 0))
		return;
	request.dst = buffer.iova;
	pvdt_expect_done(ktap, engine, &request, PVDT_INTERRUPT);
	EXPECT_EQ(ktap, pvdt_interrupts(engine), before + 1);
	pvdt_buffer_unmap(engine, &buffer);
}

void pvdt_test_read_only(struct ktap *ktap, void *subject, unsigned long param)
{
	struct pvdt_request fill = {
		.op = PVDT_OP_FILL, .length = 100, .pattern = PVDT_PATTERN
	};
	struct pvdt_request checksum = { .op = PVDT_OP_CHECKSUM, .length = 100 };
	struct pvdt *engine = subject;
	struct pvdt_buffer buffer;

	if (!EXPECT_EQ(ktap, pvdt_buffer_map(engine, &buffer, PAGE_SIZE, DMA_TO_DEVICE), 0))
		return;
	fill.dst = buffer.iova + 40;
	checksum.src = buffer.iova;
	EXPECT_EQ(ktap, pvdt_run(engine, &fill, PVDT_POLL), 0);
	EXPECT_EQ(ktap, fill.status, PVDT_STATUS_FAULT);
	EXPECT_EQ(ktap, fill.detail, buffer.iova + 40);
	EXPECT_EQ(ktap, fill.reason, PVIOMMU_EVENT_PERMISSION);
	EXPECT_EQ(ktap, fill.access, PVIOMMU_ACCESS_WRITE);
	EXPECT(ktap, pvdt_guarded(buffer.cpu, buffer.size));
	pvdt_expect_done(ktap, engine, &checksum, PVDT_POLL);
	pvdt_buffer_unmap(engine, &buffer);
}
