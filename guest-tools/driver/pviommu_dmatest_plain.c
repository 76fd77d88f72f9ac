// SPDX-License-Identifier: GPL-2.0-only
/* Tests of DMA without translation: a device address is the address of the memory. */

#define pr_fmt(fmt) "pviommu_dmatest: " fmt

#include <linux/io.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include "pviommu_dmatest_buffer.h"

static void pvdt_test_same_address(struct ktap *ktap, void *subject, unsigned long param)
{
	struct pvdt *engine = subject;
	dma_addr_t iova;
	u8 *data;

	data = kmalloc(PAGE_SIZE, GFP_KERNEL);
	if (!EXPECT(ktap, data))
		return;
	iova = dma_map_single(pvdt_dev(engine), data, PAGE_SIZE, DMA_TO_DEVICE);
	if (EXPECT_EQ(ktap, dma_mapping_error(pvdt_dev(engine), iova), 0)) {
		EXPECT_EQ(ktap, iova, virt_to_phys(data));
		dma_unmap_single(pvdt_dev(engine), iova, PAGE_SIZE, DMA_TO_DEVICE);
	}
	kfree(data);
}

const struct ktap_case pvdt_plain_cases[] = {
	{ "device addresses are those of the memory", pvdt_test_same_address },
	{ "reaches a coherent page untranslated", pvdt_test_coherent, SZ_4K },
	{ "reaches 1 MiB of coherent memory untranslated", pvdt_test_coherent, SZ_1M },
	{ "fills an unaligned dma_map_single buffer untranslated", pvdt_test_single, 1500 },
	{ "completion comes by interrupt untranslated", pvdt_test_interrupt },
	{ "reaches shared memory of another engine untranslated", pvdt_test_peer_shared },
	{ "reaches registers of another engine untranslated", pvdt_test_peer_registers },
};

const unsigned int pvdt_nr_plain_cases = ARRAY_SIZE(pvdt_plain_cases);
