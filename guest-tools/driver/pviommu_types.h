/* SPDX-License-Identifier: GPL-2.0-only */
/* Paravirtual IOMMU: commands, capabilities and usage of the device, also for the test module. */
#ifndef _PVIOMMU_TYPES_H
#define _PVIOMMU_TYPES_H

#include <linux/types.h>

#include "pviommu_abi.h"

struct pviommu;

/**
 * enum pviommu_wait - how the sender of a command learns its result
 * @PVIOMMU_WAIT_BUSY: polls; allowed in atomic context
 * @PVIOMMU_WAIT_YIELD: polls for as long as that usually helps, then sleeps
 * @PVIOMMU_WAIT_SLEEP: sleeps until the completion interrupt
 * @PVIOMMU_POSTED: does not wait; a failure is reported as an event
 */
enum pviommu_wait {
	PVIOMMU_WAIT_BUSY,
	PVIOMMU_WAIT_YIELD,
	PVIOMMU_WAIT_SLEEP,
	PVIOMMU_POSTED,
};

/**
 * struct pviommu_command - a slot of the ring: header and payload
 * @slot: header; sequence, result and completed are filled in
 * @op: payload
 */
struct pviommu_command {
	struct pviommu_slot slot;
	union {
		struct pviommu_op_head head;
		struct pviommu_op_query_capabilities query;
		struct pviommu_op_map_pages map;
		struct pviommu_op_unmap_pages unmap;
		struct pviommu_op_reattach_device reattach;
		struct pviommu_op_lookup_page lookup;
		struct pviommu_v7_capabilities v7_query;
		struct pviommu_v7_init v7_init;
		struct pviommu_v7_alloc v7_alloc;
		struct pviommu_v7_free v7_free;
		struct pviommu_v7_map_pages v7_map;
		struct pviommu_v7_unmap_pages v7_unmap;
		struct pviommu_v7_reattach_device v7_reattach;
		struct pviommu_v7_remote_cmd v7_remote;
		struct pviommu_op_binding binding;
		struct pviommu_op_usage usage;
		struct pviommu_op_batch batch;
		struct pviommu_op_call call;
		struct pviommu_op_reserve reserve;
		struct pviommu_op_alloc_tables tables;
		struct pviommu_op_flush flush;
		u8 bytes[PVIOMMU_PAYLOAD_SIZE];
	} op;
};

static_assert(sizeof(struct pviommu_command) == PVIOMMU_SLOT_SIZE);

/**
 * struct pviommu_range - addresses, the last one included
 * @start: first byte
 * @last: last byte
 */
struct pviommu_range {
	u64 start;
	u64 last;
};

/**
 * struct pviommu_reserved - a reserved region of the capability area
 * @range: device addresses
 * @kind: PVIOMMU_REGION_*
 * @stream: stream id, or PVIOMMU_GLOBAL_STREAM
 */
struct pviommu_reserved {
	struct pviommu_range range;
	u32 kind;
	u32 stream;
};

/**
 * struct pviommu_capabilities - the capability area, copied, checked and in the CPU's byte order
 * @features: PVIOMMU_FEATURE_*, from the register
 * @page_sizes: bit mask of page sizes
 * @max_nr_pages: most pages in one map or unmap
 * @max_contexts: contexts besides the default one
 * @pool_pages: page-table pages of the device's pool
 * @rings: rings of the device
 * @aperture_bits: bits of a device address
 * @table_formats: bit mask of 1 << PVIOMMU_TABLE_FORMAT_* that the device walks, 0 for none
 * @in_flight_offset: of the in-flight lines, in the shared BAR
 * @nr_lines: how many lines
 * @line_stride: bytes from one to the next
 * @identity_default: whether context 0 is the identity, else it blocks
 * @nr_iova: entries of @iova
 * @nr_reserved: entries of @reserved
 * @nr_ram: entries of @ram
 * @nr_endpoints: entries of @endpoints
 * @iova: device addresses that may be mapped
 * @reserved: device addresses that may not
 * @ram: guest memory that the device can reach
 * @endpoints: streams behind this PV-IOMMU
 */
struct pviommu_capabilities {
	u32 features;
	u64 page_sizes;
	u32 max_nr_pages;
	u32 max_contexts;
	u32 pool_pages;
	u32 rings;
	u32 aperture_bits;
	u32 table_formats;
	u32 in_flight_offset;
	u32 nr_lines;
	u32 line_stride;
	bool identity_default;
	unsigned int nr_iova;
	unsigned int nr_reserved;
	unsigned int nr_ram;
	unsigned int nr_endpoints;
	struct pviommu_range *iova;
	struct pviommu_reserved *reserved;
	struct pviommu_range *ram;
	u32 *endpoints;
};

/**
 * struct pviommu_usage - what is in use, on both sides
 * @contexts: device: contexts allocated besides the default one
 * @bindings: device: functions bound
 * @pool_used: device: page-table pages charged
 * @pool_total: device: page-table pages of the pool
 * @mapped_pages: device: pages mapped in all contexts; driver: those in tables of the guest, except
 *	for addresses that are reserved
 * @events_lost: device: events dropped because the event ring was full
 * @domains: driver: paging domains
 * @table_pages: driver: pages of their tables
 * @endpoints: driver: functions that the IOMMU core has probed
 * @slots_in_flight: driver: slots submitted and not completed
 * @rings: driver: command rings
 * @posted: driver: commands sent that nobody waited for
 * @waited: driver: commands sent whose outcome was waited for
 * @doorbells: driver: doorbells rung
 * @rescues: driver: doorbells that a waiter rang again because one was lost
 * @device_doorbells: device: doorbells rung since it was started, by any driver
 */
struct pviommu_usage {
	u32 contexts;
	u32 bindings;
	u32 pool_used;
	u32 pool_total;
	u64 mapped_pages;
	u64 events_lost;
	u32 domains;
	u32 table_pages;
	u32 endpoints;
	u32 slots_in_flight;
	u32 rings;
	u64 posted;
	u64 waited;
	u64 doorbells;
	u64 rescues;
	u32 device_doorbells;
};

#endif /* _PVIOMMU_TYPES_H */
