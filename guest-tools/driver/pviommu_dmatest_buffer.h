/* SPDX-License-Identifier: GPL-2.0-only */
/* Buffers of the DMA tests: pages that are not contiguous in memory. */
#ifndef _PVIOMMU_DMATEST_BUFFER_H
#define _PVIOMMU_DMATEST_BUFFER_H

#include <linux/dma-mapping.h>
#include <linux/pci.h>
#include <linux/scatterlist.h>

#include "pviommu_dmatest.h"
#include "ktap.h"

#define PVDT_GUARD_BYTE		0xa5
#define PVDT_PATTERN		0x8877665544332211ULL

/**
 * struct pvdt_buffer - scattered pages, contiguous for the CPU and for the device
 * @cpu: their address for the CPU
 * @iova: their address for the device
 * @size: bytes
 * @dir: direction of its DMA
 * @count: pages
 * @pages: the pages
 * @sgt: their scatter/gather list
 */
struct pvdt_buffer {
	u8 *cpu;
	dma_addr_t iova;
	size_t size;
	enum dma_data_direction dir;
	unsigned int count;
	struct page **pages;
	struct sg_table sgt;
};

static inline struct device *pvdt_dev(struct pvdt *engine)
{
	return &pvdt_pci_dev(engine)->dev;
}

int pvdt_buffer_map(struct pvdt *engine, struct pvdt_buffer *buffer, size_t size,
		    enum dma_data_direction dir);
void pvdt_buffer_unmap(struct pvdt *engine, struct pvdt_buffer *buffer);
void pvdt_keep(struct pvdt *engine, struct page *page);
void pvdt_buffer_unmap_and_keep(struct pvdt *engine, struct pvdt_buffer *buffer);
bool pvdt_kept_guarded(struct pvdt *engine);
void pvdt_to_device(struct pvdt *engine, struct pvdt_buffer *buffer);
void pvdt_to_cpu(struct pvdt *engine, struct pvdt_buffer *buffer);
void pvdt_scribble(u8 *data, size_t size, u32 seed);
bool pvdt_guarded(const u8 *data, size_t size);
bool pvdt_expect_done(struct ktap *ktap, struct pvdt *engine,
		      struct pvdt_request *request, enum pvdt_wait wait);

/* pviommu_dmatest_tests.c */
void pvdt_test_coherent(struct ktap *ktap, void *subject, unsigned long size);
void pvdt_test_single(struct ktap *ktap, void *subject, unsigned long length);
extern const struct ktap_case pvdt_all_cases[];
extern const unsigned int pvdt_nr_all_cases;
/* of them, those that are about memory only */
extern const unsigned int pvdt_nr_memory_cases;
extern const struct ktap_case pvdt_quick_cases[];
extern const unsigned int pvdt_nr_quick_cases;

/* pviommu_dmatest_{late,plain,storm,lost,queued,faulty}.c */
extern const struct ktap_case pvdt_strict_cases[];
extern const unsigned int pvdt_nr_strict_cases;
extern const struct ktap_case pvdt_lazy_cases[];
extern const unsigned int pvdt_nr_lazy_cases;
extern const struct ktap_case pvdt_plain_cases[];
extern const unsigned int pvdt_nr_plain_cases;
extern const struct ktap_case pvdt_storm_cases[];
extern const unsigned int pvdt_nr_storm_cases;
extern const struct ktap_case pvdt_long_storm_cases[];
extern const unsigned int pvdt_nr_long_storm_cases;
extern const struct ktap_case pvdt_lost_cases[];
extern const unsigned int pvdt_nr_lost_cases;
extern const struct ktap_case pvdt_paused_cases[];
extern const unsigned int pvdt_nr_paused_cases;
extern const struct ktap_case pvdt_queued_cases[];
extern const unsigned int pvdt_nr_queued_cases;
extern const struct ktap_case pvdt_faulty_cases[];
extern const unsigned int pvdt_nr_faulty_cases;
extern const struct ktap_case pvdt_glance_cases[];
extern const unsigned int pvdt_nr_glance_cases;

/* pviommu_dmatest_engine.c */
void pvdt_test_checksum(struct ktap *ktap, void *subject, unsigned long length);
void pvdt_test_verify(struct ktap *ktap, void *subject, unsigned long planted);
void pvdt_test_scatter_gather(struct ktap *ktap, void *subject, unsigned long param);
void pvdt_test_wrap(struct ktap *ktap, void *subject, unsigned long param);
void pvdt_test_interrupt(struct ktap *ktap, void *subject, unsigned long param);
void pvdt_test_read_only(struct ktap *ktap, void *subject, unsigned long param);

/* pviommu_dmatest_peer.c */
void pvdt_test_peer_shared(struct ktap *ktap, void *subject, unsigned long param);
void pvdt_test_peer_registers(struct ktap *ktap, void *subject, unsigned long param);
void pvdt_test_no_peer(struct ktap *ktap, void *subject, unsigned long param);

#endif /* _PVIOMMU_DMATEST_BUFFER_H */
