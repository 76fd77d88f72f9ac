// SPDX-License-Identifier: GPL-2.0-only
/* Tests of DMA to BARs: those of the DMA test engines are reached, no others. */

#define pr_fmt(fmt) "pviommu_dmatest: " fmt

#include <linux/io.h>
#include <linux/iommu.h>
#include <linux/sizes.h>

#include "pviommu_dmatest_buffer.h"

/* part of the scatter/gather entries, which are not used meanwhile */
#define PVDT_PEER_OFFSET	PVDT_SG_OFFSET
/* a page of the device's: BARs may have less behind the offset than a page of the kernel's */
#define PVDT_PEER_SIZE		SZ_4K
/* no memory, and no BAR: a serial port of the "virt" machine, or the first I/O APIC */
#define PVDT_NO_BAR		(IS_ENABLED(CONFIG_ARM64) ? 0x09000000 : 0xfec00000)
/* the DMA API allocates from the end of the first 4 GiB */
#define PVDT_PEER_IOVA		SZ_1G

/* Another engine if there is one, held until pvdt_client_ops.put(). */
static struct pvdt *pvdt_peer_get(struct pvdt *engine)
{
	struct pvdt *peer = pvdt_client_ops.get(0);
	struct pvdt *other;

	if (peer != engine)
		return peer;
	other = pvdt_client_ops.get(1);
	if (!other)
		return peer;
	pvdt_client_ops.put(peer);
	return other;
}

static phys_addr_t pvdt_bar(struct pvdt *peer, unsigned int bar)
{
	return pci_resource_start(pvdt_pci_dev(peer), bar);
}

static void pvdt_peer_copy(struct ktap *ktap, struct pvdt *engine, dma_addr_t dst, dma_addr_t src,
			   size_t length)
{
	struct pvdt_request request = {
		.op = PVDT_OP_COPY, .length = length, .dst = dst, .src = src,
	};

	pvdt_expect_done(ktap, engine, &request, PVDT_POLL);
}

/* From memory to the BAR, from its first half to its second, and back to memory. */
static void pvdt_peer_shared(struct ktap *ktap, struct pvdt *engine, dma_addr_t iova, u8 *cpu)
{
	const size_t half = PVDT_PEER_SIZE / 2;
	struct pvdt_buffer buffer;

	if (!EXPECT_EQ(ktap, pvdt_buffer_map(engine, &buffer, PVDT_PEER_SIZE, DMA_BIDIRECTIONAL),
		       0))
		return;
	memset(cpu, PVDT_GUARD_BYTE, PVDT_PEER_SIZE);
	pvdt_scribble(buffer.cpu, PVDT_PEER_SIZE, 11);
	pvdt_to_device(engine, &buffer);
	pvdt_peer_copy(ktap, engine, iova + 3, buffer.iova + 3, half - 3);
	EXPECT(ktap, !memcmp(cpu + 3, buffer.cpu + 3, half - 3));
	EXPECT(ktap, pvdt_guarded(cpu, 3));
	pvdt_peer_copy(ktap, engine, iova + half, iova, half);
	EXPECT(ktap, !memcmp(cpu + half, cpu, half));
	pvdt_peer_copy(ktap, engine, buffer.iova, iova + half, half);
	pvdt_to_cpu(engine, &buffer);
	EXPECT(ktap, !memcmp(buffer.cpu, cpu, half));
	pvdt_buffer_unmap(engine, &buffer);
}

void pvdt_test_peer_shared(struct ktap *ktap, void *subject, unsigned long param)
{
	struct pvdt *engine = subject;
	struct pvdt *peer = pvdt_peer_get(engine);
	phys_addr_t phys = pvdt_bar(peer, PVDT_SHARED_BAR) + PVDT_PEER_OFFSET;
	u8 *cpu = memremap(phys, PVDT_PEER_SIZE, MEMREMAP_WB);
	dma_addr_t iova;

	if (!EXPECT(ktap, cpu))
		goto out_put;
	iova = dma_map_resource(pvdt_dev(engine), phys, PVDT_PEER_SIZE, DMA_BIDIRECTIONAL, 0);
	if (EXPECT_EQ(ktap, dma_mapping_error(pvdt_dev(engine), iova), 0)) {
		pvdt_peer_shared(ktap, engine, iova, cpu);
		dma_unmap_resource(pvdt_dev(engine), iova, PVDT_PEER_SIZE, DMA_BIDIRECTIONAL, 0);
	}
	memunmap(cpu);
out_put:
	pvdt_client_ops.put(peer);
}

static u32 pvdt_peer_read(struct ktap *ktap, struct pvdt *engine, dma_addr_t iova)
{
	struct pvdt_buffer buffer;
	u32 value = 0;

	if (!EXPECT_EQ(ktap, pvdt_buffer_map(engine, &buffer, PVDT_PEER_SIZE, DMA_FROM_DEVICE), 0))
		return 0;
	pvdt_peer_copy(ktap, engine, buffer.iova, iova, sizeof(value));
	pvdt_to_cpu(engine, &buffer);
	memcpy(&value, buffer.cpu, sizeof(value));
	pvdt_buffer_unmap(engine, &buffer);
	return value;
}

static void pvdt_peer_write(struct ktap *ktap, struct pvdt *engine, dma_addr_t iova, u32 value)
{
	struct pvdt_request request = {
		.op = PVDT_OP_FILL, .length = sizeof(value), .dst = iova, .pattern = value,
	};

	pvdt_expect_done(ktap, engine, &request, PVDT_POLL);
}

void pvdt_test_peer_registers(struct ktap *ktap, void *subject, unsigned long param)
{
	struct pvdt *engine = subject;
	struct pvdt *peer = pvdt_peer_get(engine);
	phys_addr_t phys = pvdt_bar(peer, PVDT_REGISTER_BAR);
	/* less than a page of some kernels, and what is beside it is nobody's */
	size_t size = pci_resource_len(pvdt_pci_dev(peer), PVDT_REGISTER_BAR);
	dma_addr_t iova;

	iova = dma_map_resource(pvdt_dev(engine), phys, size, DMA_BIDIRECTIONAL, 0);
	if (!EXPECT_EQ(ktap, dma_mapping_error(pvdt_dev(engine), iova), 0))
		goto out_put;
	EXPECT_EQ(ktap, pvdt_peer_read(ktap, engine, iova + PVDT_REG_MAGIC), PVDT_MAGIC);
	/* an engine that turns itself off cannot turn itself on again */
	if (peer != engine) {
		pvdt_peer_write(ktap, engine, iova + PVDT_REG_CONTROL, 0);
		EXPECT_EQ(ktap, pvdt_peer_read(ktap, engine, iova + PVDT_REG_CONTROL), 0);
		pvdt_peer_write(ktap, engine, iova + PVDT_REG_CONTROL, PVDT_CONTROL_ENABLE);
		EXPECT_EQ(ktap, pvdt_peer_read(ktap, engine, iova + PVDT_REG_CONTROL),
			  PVDT_CONTROL_ENABLE);
	}
	dma_unmap_resource(pvdt_dev(engine), iova, size, DMA_BIDIRECTIONAL, 0);
out_put:
	pvdt_client_ops.put(peer);
}

void pvdt_test_no_peer(struct ktap *ktap, void *subject, unsigned long param)
{
	struct device *dev = pvdt_dev(subject);
	struct iommu_domain *domain = iommu_get_domain_for_dev(dev);
	dma_addr_t iova;
	int ret;

	iova = dma_map_resource(dev, PVDT_NO_BAR, PVDT_PEER_SIZE, DMA_BIDIRECTIONAL, 0);
	if (!EXPECT(ktap, dma_mapping_error(dev, iova)))
		dma_unmap_resource(dev, iova, PVDT_PEER_SIZE, DMA_BIDIRECTIONAL, 0);
	ret = iommu_map(domain, PVDT_PEER_IOVA, PVDT_NO_BAR, PVDT_PEER_SIZE,
			IOMMU_READ | IOMMU_MMIO, GFP_KERNEL);
	if (!EXPECT_EQ(ktap, ret, -EFAULT) && !ret)
		iommu_unmap(domain, PVDT_PEER_IOVA, PVDT_PEER_SIZE);
}
