/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* The PV-IOMMU function. Generated from the declarations of pviommu_abi; do not edit. */
#ifndef _PVIOMMU_ABI_H
#define _PVIOMMU_ABI_H

#include <linux/types.h>
#ifdef __KERNEL__
#include <linux/build_bug.h>
#else
#include <assert.h>
#endif

/*
 * PCI function and registers
 *
 * Trapped registers and PCI identity of the PV-IOMMU function.
 *
 * BAR 0 (4 KiB, 32-bit) holds the registers: 32-bit words at multiples of four, other accesses
 * read 0 and write nothing. BAR 2 (64-bit, prefetchable) is the shared memory of
 * pviommu_abi.shared. BAR 4 (32-bit) holds the MSI-X table and its pending bits: vector 0 for
 * events, vector 1 + n for ring n.
 *
 * The order of setting up: select a profile while all rings are off, place and enable ring 0, go.
 * Selecting a profile resets the device.
 */

#define PVIOMMU_REG_MAGIC                       0x000
#define PVIOMMU_REG_VERSION                     0x004
#define PVIOMMU_REG_FEATURES                    0x008
#define PVIOMMU_REG_INSTANCE                    0x00c
#define PVIOMMU_REG_STATUS                      0x010
#define PVIOMMU_REG_PROFILE                     0x014
#define PVIOMMU_REG_RESET                       0x018
#define PVIOMMU_REG_MAX_RINGS                   0x01c
#define PVIOMMU_REG_MAX_RING_ENTRIES            0x020
#define PVIOMMU_REG_RING_AREA                   0x024
#define PVIOMMU_REG_RING_AREA_SIZE              0x028
#define PVIOMMU_REG_DOORBELLS                   0x02c
#define PVIOMMU_REG_RING_SELECT                 0x080
#define PVIOMMU_REG_RING_TYPE                   0x084
#define PVIOMMU_REG_RING_ENTRIES                0x088
#define PVIOMMU_REG_RING_BASE_LO                0x08c
#define PVIOMMU_REG_RING_BASE_HI                0x090
#define PVIOMMU_REG_RING_CONTROL                0x094
#define PVIOMMU_REG_RING_STATUS                 0x098
#define PVIOMMU_REG_DOORBELL                    0x100

#define PVIOMMU_VENDOR_ID                       0x1234       /* default PCI vendor id */
#define PVIOMMU_DEVICE_ID                       0x5056       /* default PCI device id */
#define PVIOMMU_MAGIC                           0x4d495650   /* value of register MAGIC */
#define PVIOMMU_ABI_VERSION                     1            /* value of register VERSION */
#define PVIOMMU_REGISTER_BAR                    0            /* BAR of the registers */
#define PVIOMMU_REGISTER_BAR_SIZE               0x1000       /* bytes */
#define PVIOMMU_SHARED_BAR                      2            /* BAR of the shared memory */
#define PVIOMMU_MSIX_BAR                        4            /* BAR of the MSI-X table */
#define PVIOMMU_VECTOR_EVENTS                   0            /* MSI-X vector of the event ring */
#define PVIOMMU_VECTOR_RING                     1            /* MSI-X vector of ring 0; ring n has the nth after it */
#define PVIOMMU_DOORBELL_STRIDE                 4            /* bytes from one doorbell to the next */
#define PVIOMMU_ENDPOINT_SIGNATURE              0x55495650   /* signature of the vendor capability */

/* Bits of FEATURES. */
#define PVIOMMU_FEATURE_PROFILE_XEN_2024        0x1
#define PVIOMMU_FEATURE_POSTED                  0x2
#define PVIOMMU_FEATURE_PROFILE_XEN_V7          0x4
#define PVIOMMU_FEATURE_BATCH_2014              0x8          /* operations BATCH and CALL */
/* operations ALLOC_TABLES and FLUSH, capability GUEST_TABLES */
#define PVIOMMU_FEATURE_GUEST_TABLES            0x10

/* Bits of STATUS. */
/* the last write to a writable register was refused; the next accepted one clears this */
#define PVIOMMU_STATUS_REFUSED                  0x1
#define PVIOMMU_STATUS_RINGS_ON                 0x2
/* the memory that the hypervisor handed over is not what the guest uses (share=on is missing) */
#define PVIOMMU_STATUS_MEMORY_NOT_SHARED        0x4

/* Values of PROFILE. */
#define PVIOMMU_PROFILE_NONE                    0
#define PVIOMMU_PROFILE_XEN_2024                1
#define PVIOMMU_PROFILE_XEN_V7                  2

/* Values for RESET. Functions outside context 0 are blocked by either. */
/* a function's own reset, or its bus mastering turned on anew, unblocks it */
#define PVIOMMU_RESET_POWER_ON                  1
/* only attaching unblocks them: whoever owns them may reset them, and nobody translates for */
/* them any more */
#define PVIOMMU_RESET_BLOCKED                   2

/* Values of RING_TYPE. */
#define PVIOMMU_RING_TYPE_SHARED_BAR            0

/* Bits of RING_CONTROL. */
#define PVIOMMU_RING_CONTROL_ENABLE             0x1

/* Bits of RING_STATUS. */
#define PVIOMMU_RING_STATUS_ENABLED             0x1
/* the producer index was impossible; off and on again repairs it */
#define PVIOMMU_RING_STATUS_BROKEN              0x2

/**
 * struct pviommu_endpoint_capability - Vendor-specific PCI capability (id 0x09) of the PV-IOMMU function and of every endpoint behind it
 * @cap_id: 0x09
 * @next: offset of the next capability
 * @length: 16
 * @version: 1
 * @signature: ENDPOINT_SIGNATURE
 * @instance: INSTANCE of the PV-IOMMU that translates for it
 * @stream: stream id; all ones in the PV-IOMMU's own
 */
struct pviommu_endpoint_capability {
	__u8	cap_id;
	__u8	next;
	__u8	length;
	__u8	version;
	__le32	signature;
	__le32	instance;
	__le32	stream;
};
static_assert(sizeof(struct pviommu_endpoint_capability) == 16);

/*
 * Shared memory
 *
 * The shared BAR: index lines, capability area, event ring, command rings.
 *
 * Everything here lies in one memory object that the device exposes as BAR 2 and that the
 * hypervisor maps into the guest, so no access to it leaves the guest. All words are little-
 * endian; index words are 32 bits, aligned, and each cache line has one writer.
 *
 * Indices run freely and wrap at 2**32; an entry's place is index % entries. A ring holds producer
 * - completed slots (modulo 2**32); more than entries is a broken ring.
 *
 * Notifications are suppressed by event index only. x asks for a notification when an index passes
 * x: the other side notifies if (new - x - 1) % 2**32 < (new - old) % 2**32.
 */

#define PVIOMMU_SHARED_BAR_SIZE                 0x100000     /* bytes */
#define PVIOMMU_CACHE_LINE                      64           /* from the guest's words to the device's */
#define PVIOMMU_INDEX_OFFSET                    0x0          /* index lines of ring 0 */
#define PVIOMMU_RING_INDEX_STRIDE               0x80         /* from one ring's index lines to the next */
#define PVIOMMU_EVENT_INDEX_OFFSET              0x400        /* index lines of the event ring */
#define PVIOMMU_CAPABILITY_OFFSET               0x1000       /* capability area */
#define PVIOMMU_CAPABILITY_SIZE                 0x2000       /* bytes */
#define PVIOMMU_EVENT_OFFSET                    0x4000       /* event records */
#define PVIOMMU_EVENT_ENTRIES                   256          /* records of the event ring */
#define PVIOMMU_FAULT_RULES_OFFSET              0x8000       /* page of the fault rules */
#define PVIOMMU_FAULT_RULES_SIZE                0x1000       /* bytes */
#define PVIOMMU_FAULT_PAGE_MAGIC                0x464c5450   /* magic of that page */
#define PVIOMMU_IN_FLIGHT_OFFSET                0x9000       /* in-flight lines */
#define PVIOMMU_IN_FLIGHT_LINES                 256          /* lines there */
#define PVIOMMU_MAX_RINGS                       8            /* rings that the layout has room for */
#define PVIOMMU_MIN_RING_ENTRIES                16           /* fewest slots of a ring */
#define PVIOMMU_CAPABILITY_MAGIC                0x50414349   /* magic of the capability area */
#define PVIOMMU_GLOBAL_STREAM                   0xffffffff   /* stream of a region that concerns all */
#define PVIOMMU_SBDF_UNBOUND                    0xffffffff   /* sbdf of an endpoint that is not bound */

/* Formats of tables that the guest owns. The capability has a bit 1 << format for each that there is. */
/* second stage of VT-d: 4 levels, 48 bits, leaves of 4 KiB, 2 MiB and 1 GiB */
#define PVIOMMU_TABLE_FORMAT_VTD_SS             0
/* x86-64: 4 levels, 47 bits of addresses from 0 on, leaves of 4 KiB, 2 MiB and 1 GiB */
#define PVIOMMU_TABLE_FORMAT_X86_64             1

/* What an event reports. */
/* DMA to a device address without a mapping */
#define PVIOMMU_EVENT_NOT_MAPPED                1
#define PVIOMMU_EVENT_PERMISSION                2            /* DMA that the mapping's flags forbid */
#define PVIOMMU_EVENT_OUT_OF_APERTURE           3            /* DMA past the last legal device address */
/* DMA to a reserved region, the MSI window for one */
#define PVIOMMU_EVENT_RESERVED                  4
/* DMA of an endpoint that waits for its reset, after the IOMMU's or a failure (no access then) */
#define PVIOMMU_EVENT_BLOCKED                   5
/* the translation leads to what is neither guest memory nor a BAR that may be reached, any */
/* more or at all */
#define PVIOMMU_EVENT_NOT_RAM                   6
/* the translation leads to registers of a BAR, and to more of them than one request may touch */
#define PVIOMMU_EVENT_ABORTED                   7
/* a posted slot failed: result and slot tell which */
#define PVIOMMU_EVENT_POSTED_FAILED             16
/* the producer index of ring slot is impossible; the ring is stopped */
#define PVIOMMU_EVENT_RING_BROKEN               17

/* The access that was refused. */
#define PVIOMMU_ACCESS_READ                     0x1
#define PVIOMMU_ACCESS_WRITE                    0x2

/* Kinds of capability. After the header come a count (u32), a zero (u32) and the entries. */
#define PVIOMMU_CAP_IOVA_RANGES                 1
#define PVIOMMU_CAP_RESERVED_REGIONS            2
#define PVIOMMU_CAP_LIMITS                      3
#define PVIOMMU_CAP_RAM_RANGES                  4
#define PVIOMMU_CAP_ENDPOINTS                   5
/* the device follows a scenario of faults, and tells what its rules did */
#define PVIOMMU_CAP_FAULT_RULES                 6
/* contexts may have tables that the guest owns and the device walks when there is DMA */
#define PVIOMMU_CAP_GUEST_TABLES                7

/* Kinds of reserved region. */
#define PVIOMMU_REGION_RESERVED                 1            /* no map may touch it */
/* writes to it are interrupts and never translated */
#define PVIOMMU_REGION_MSI                      2
/* mapped 1:1 in whatever context the endpoint is attached to, as an RMRR or IVMD asks for */
#define PVIOMMU_REGION_DIRECT                   3

/* Flags of a rule. */
#define PVIOMMU_FAULT_RULE_ADVERSARIAL          0x1          /* no correct IOMMU does what it does */

/**
 * struct pviommu_guest_ring_line - Words of a command ring that the guest writes
 * @producer: slots submitted
 * @completion_event: interrupt me when completed passes this
 * @awaited: somebody polls until completed is this; no wait is over before it is reached
 */
struct pviommu_guest_ring_line {
	__le32	producer;
	__le32	completion_event;
	__le32	awaited;
};
static_assert(sizeof(struct pviommu_guest_ring_line) == 12);

/**
 * struct pviommu_device_ring_line - Words of a command ring that the device writes, one cache line further on
 * @completed: slots completed
 * @doorbell_event: ring the doorbell when producer passes this
 */
struct pviommu_device_ring_line {
	__le32	completed;
	__le32	doorbell_event;
};
static_assert(sizeof(struct pviommu_device_ring_line) == 8);

/**
 * struct pviommu_guest_event_line - Words of the event ring that the guest writes
 * @consumer: events taken
 * @arm: interrupt me when producer passes this
 */
struct pviommu_guest_event_line {
	__le32	consumer;
	__le32	arm;
};
static_assert(sizeof(struct pviommu_guest_event_line) == 8);

/**
 * struct pviommu_device_event_line - Words of the event ring that the device writes, one cache line further on
 * @producer: events written
 * @lost: events dropped because the ring was full; wraps
 */
struct pviommu_device_event_line {
	__le32	producer;
	__le32	lost;
};
static_assert(sizeof(struct pviommu_device_event_line) == 8);

/**
 * struct pviommu_in_flight_line - Whether DMA through guest tables is in flight; the device writes it
 * @step: odd while the device translates with entries that it has read, and copies; wraps
 * @pending: requests in flight whose translations outlive a step
 */
struct pviommu_in_flight_line {
	__le32	step;
	__le32	pending;
};
static_assert(sizeof(struct pviommu_in_flight_line) == 8);

/**
 * struct pviommu_event - One record of the event ring
 * @sequence: counts every event, lost ones too, so a gap shows how many are missing
 * @reason: EventReason
 * @access: EventAccess
 * @pad0: 0
 * @stream: stream id of the endpoint
 * @sbdf: segment << 16 | bus << 8 | devfn, or all ones
 * @iova: first refused device address, exact to the byte
 * @length: bytes of the refused request, or of the scatter/gather element with that address
 * @ctx_no: context
 * @pad1: 0
 * @result: POSTED_FAILED: negative errno
 * @slot: POSTED_FAILED: sequence of the slot; RING_BROKEN: ring
 * @pad2: 0
 * @time_ns: the device's monotonic clock
 * @pad3: 0
 */
struct pviommu_event {
	__le32	sequence;
	__le16	reason;
	__u8	access;
	__u8	pad0;
	__le32	stream;
	__le32	sbdf;
	__le64	iova;
	__le64	length;
	__le16	ctx_no;
	__le16	pad1;
	__le32	result;
	__le32	slot;
	__le32	pad2;
	__le64	time_ns;
	__le64	pad3;
};
static_assert(sizeof(struct pviommu_event) == 64);

/**
 * struct pviommu_capability_area - Head of the capability area. The device bumps generation to an odd value before it rewrites the area and
 * @magic: CAPABILITY_MAGIC
 * @generation: even when the area is stable
 * @length: bytes in use, this head included
 * @first: offset of the first capability from the start of the area
 */
struct pviommu_capability_area {
	__le32	magic;
	__le32	generation;
	__le32	length;
	__le32	first;
};
static_assert(sizeof(struct pviommu_capability_area) == 16);

/**
 * struct pviommu_capability_header - Head of each capability, as VFIO has them
 * @cap_id: CapabilityId
 * @version: 1
 * @next: offset of the next one from the start of the area, 0 for the last
 */
struct pviommu_capability_header {
	__le16	cap_id;
	__le16	version;
	__le32	next;
};
static_assert(sizeof(struct pviommu_capability_header) == 8);

/**
 * struct pviommu_capability_count - Follows the header of a capability that is a list
 * @count: entries
 * @pad0: 0
 */
struct pviommu_capability_count {
	__le32	count;
	__le32	pad0;
};
static_assert(sizeof(struct pviommu_capability_count) == 8);

/**
 * struct pviommu_address_range - Entry of IOVA_RANGES (device addresses) and RAM_RANGES (guest physical addresses)
 * @start: first byte
 * @last: last byte, inclusive
 */
struct pviommu_address_range {
	__le64	start;
	__le64	last;
};
static_assert(sizeof(struct pviommu_address_range) == 16);

/**
 * struct pviommu_reserved_region - Entry of RESERVED_REGIONS
 * @start: first byte
 * @last: last byte, inclusive
 * @kind: RegionKind
 * @stream: stream id, or GLOBAL_STREAM
 */
struct pviommu_reserved_region {
	__le64	start;
	__le64	last;
	__le32	kind;
	__le32	stream;
};
static_assert(sizeof(struct pviommu_reserved_region) == 24);

/**
 * struct pviommu_limits - The record of LIMITS
 * @page_sizes: bit mask of page sizes that a map may be made of
 * @max_nr_pages: most pages in one map or unmap
 * @max_contexts: contexts besides the default one
 * @pool_pages: page-table pages of the pool
 * @rings: rings that this device has
 * @aperture_bits: bits of a device address
 * @default_policy: what context 0 does: 1 identity, 0 blocked
 */
struct pviommu_limits {
	__le64	page_sizes;
	__le32	max_nr_pages;
	__le32	max_contexts;
	__le32	pool_pages;
	__le32	rings;
	__le32	aperture_bits;
	__le32	default_policy;
};
static_assert(sizeof(struct pviommu_limits) == 32);

/**
 * struct pviommu_endpoint_entry - Entry of ENDPOINTS
 * @stream: stream id
 * @flags: 1: the binding is fixed by the configuration
 * @sbdf: the fixed binding, or all ones
 * @pad0: 0
 */
struct pviommu_endpoint_entry {
	__le32	stream;
	__le32	flags;
	__le32	sbdf;
	__le32	pad0;
};
static_assert(sizeof(struct pviommu_endpoint_entry) == 16);

/**
 * struct pviommu_guest_tables - The record of GUEST_TABLES
 * @formats: 1 << TableFormat for each that ALLOC_TABLES takes
 * @offset: of line 0 of the in-flight lines, in bytes into BAR 2
 * @lines: how many lines there are
 * @stride: bytes from one line to the next
 */
struct pviommu_guest_tables {
	__le32	formats;
	__le32	offset;
	__le32	lines;
	__le32	stride;
};
static_assert(sizeof(struct pviommu_guest_tables) == 16);

/**
 * struct pviommu_fault_rules - The record of FAULT_RULES: where the page is that counts what the rules did
 * @offset: of the page, in bytes into BAR 2
 * @size: of the page, in bytes
 */
struct pviommu_fault_rules {
	__le32	offset;
	__le32	size;
};
static_assert(sizeof(struct pviommu_fault_rules) == 8);

/**
 * struct pviommu_fault_page - Head of the page
 * @magic: FAULT_PAGE_MAGIC
 * @generation: even while the rules stay
 * @rules: records behind this head, in the order of the scenario
 * @record_size: bytes of a record
 * @state: FNV-1a (64 bits) of the name of the state that the scenario is in
 * @seed: of the scenario
 */
struct pviommu_fault_page {
	__le32	magic;
	__le32	generation;
	__le32	rules;
	__le32	record_size;
	__le64	state;
	__le64	seed;
};
static_assert(sizeof(struct pviommu_fault_page) == 32);

/**
 * struct pviommu_fault_rule - What one rule did so far. Each count is written in one go
 * @id_hash: FNV-1a (64 bits) of its id
 * @passed: how many times its conditions held
 * @fired: how many times it acted
 * @flags: FaultRuleFlags
 * @pad0: 0
 */
struct pviommu_fault_rule {
	__le64	id_hash;
	__le64	passed;
	__le64	fired;
	__le32	flags;
	__le32	pad0;
};
static_assert(sizeof(struct pviommu_fault_rule) == 32);

/*
 * Slots and operations
 *
 * Command slots: the 64-byte entries of a ring, and the operations they carry.
 *
 * A slot is a 16-byte header and a 48-byte payload. The guest fills a slot, the device executes
 * it, writes the OUT fields of the payload and the result back into the same slot, and then
 * advances the ring's completed index.
 *
 * The payload of class XEN_2024 is struct pv_iommu_op of the June 2024 header of the Xen PV-IOMMU
 * series, bit for bit (32 bytes; the remaining 16 must be zero). The operations of class VENDOR
 * are this device's own; they never borrow Xen numbers.
 */

#define PVIOMMU_SLOT_SIZE                       64           /* bytes of a slot */
#define PVIOMMU_PAYLOAD_OFFSET                  16           /* payload within a slot */
#define PVIOMMU_PAYLOAD_SIZE                    48           /* bytes */
#define PVIOMMU_PAGE_SHIFT                      12           /* frames and counts are in pages of 4 KiB */
#define PVIOMMU_DOMID_SELF                      0x7ff0       /* domid that names the caller */
#define PVIOMMU_DEFAULT_CONTEXT                 0            /* cannot be edited or freed */

/* Whose numbering the operation of a slot belongs to. */
/* pv_iommu_op of June 2024; the number is in the payload (subop_id), op must be 0 */
#define PVIOMMU_CLASS_XEN_2024                  1
/* versions 4 to 7 of the series; the number is in op, the payload is that operation's */
/* structure */
#define PVIOMMU_CLASS_XEN_V7                    2
#define PVIOMMU_CLASS_VENDOR                    128          /* vendor operations; the number is in op */

/* Flags of a slot; other bits are refused with -EINVAL. */
/* nobody waits for the result: a failure is reported as an event */
#define PVIOMMU_SLOT_POSTED                     0x1

/* Sub-operations of pv_iommu_op (IOMMUOP_* of the June 2024 header; 0 has no name there). */
#define PVIOMMU_XEN2024_NOOP                    0
#define PVIOMMU_XEN2024_QUERY_CAPABILITIES      1
#define PVIOMMU_XEN2024_ALLOC_CONTEXT           2
#define PVIOMMU_XEN2024_FREE_CONTEXT            3
#define PVIOMMU_XEN2024_REATTACH_DEVICE         4
#define PVIOMMU_XEN2024_MAP_PAGES               5
#define PVIOMMU_XEN2024_UNMAP_PAGES             6
#define PVIOMMU_XEN2024_LOOKUP_PAGE             7

/* Flags of ALLOC_CONTEXT (IOMMU_CREATE_*). */
/* begin with 1:1 mappings of all guest memory */
#define PVIOMMU_CREATE_CLONE                    0x1

/* Flags of FREE_CONTEXT (the header leaves the bit unnamed; the hypervisor calls it reattach-to-default). */
/* move the attached devices to the default context instead of failing with -EBUSY */
#define PVIOMMU_FREE_REATTACH_DEFAULT           0x1

/* Flags of MAP_PAGES (IOMMU_OP_*). */
#define PVIOMMU_MAP_READABLE                    0x1
#define PVIOMMU_MAP_WRITEABLE                   0x2

/* Sub-operations of the series' versions 4 to 7 (IOMMU_*). The numbers differ from those of June 2024. */
#define PVIOMMU_V7_NOOP                         0
#define PVIOMMU_V7_QUERY_CAPABILITIES           1
#define PVIOMMU_V7_INIT                         2
#define PVIOMMU_V7_ALLOC_CONTEXT                3
#define PVIOMMU_V7_FREE_CONTEXT                 4
#define PVIOMMU_V7_REATTACH_DEVICE              5
#define PVIOMMU_V7_MAP_PAGES                    6
#define PVIOMMU_V7_UNMAP_PAGES                  7
#define PVIOMMU_V7_REMOTE_CMD                   8
#define PVIOMMU_V7_ALLOC_NESTED                 9
#define PVIOMMU_V7_FLUSH_NESTED                 10
#define PVIOMMU_V7_ATTACH_PASID                 11
#define PVIOMMU_V7_DETACH_PASID                 12

/* Bits of cap_flags (IOMMUCAP_*). */
/* the default context maps all guest memory 1:1 */
#define PVIOMMU_V7_CAP_DEFAULT_IDENTITY         0x1
#define PVIOMMU_V7_CAP_CACHE                    0x2
#define PVIOMMU_V7_CAP_NESTED                   0x4
#define PVIOMMU_V7_CAP_PASID                    0x8
#define PVIOMMU_V7_CAP_IDENTITY                 0x10         /* ALLOC_CONTEXT can make identity contexts */

/* Flags of ALLOC_CONTEXT (IOMMU_ALLOC_*). */
/* begin with 1:1 mappings of all guest memory */
#define PVIOMMU_V7_ALLOC_IDENTITY               0x1

/* Flags of FREE_CONTEXT (IOMMU_FREE_*). */
/* move the attached devices to the default context instead of failing with -EBUSY */
#define PVIOMMU_V7_FREE_REATTACH_DEFAULT        0x1

/* Flags of MAP_PAGES (IOMMU_MAP_*). */
#define PVIOMMU_V7_MAP_READABLE                 0x1
#define PVIOMMU_V7_MAP_WRITEABLE                0x2

/* Operations of class VENDOR. */
/* tell the device which stream the function at an SBDF is (a vfio-user device never learns its */
/* address) */
#define PVIOMMU_VENDOR_OP_BIND                  1
/* forget the binding; the endpoint reaches nothing until it is bound and attached again */
#define PVIOMMU_VENDOR_OP_UNBIND                2
#define PVIOMMU_VENDOR_OP_QUERY_ENDPOINT        3            /* stream and context of a bound function */
#define PVIOMMU_VENDOR_OP_QUERY_USAGE           4            /* what is in use */
/* map or unmap each element of an array in guest memory, with a status each (the interface of */
/* 2014) */
#define PVIOMMU_VENDOR_OP_BATCH                 5
/* carry out an operation of the selected profile whose structure lies in guest memory, as a */
/* hypercall's does */
#define PVIOMMU_VENDOR_OP_CALL                  6
/* set pool pages aside for a context, so that maps which need no more of them cannot fail for */
/* lack of any */
#define PVIOMMU_VENDOR_OP_RESERVE               7
/* take the function out of its context; it reaches nothing, no direct region either, until it */
/* is attached again */
#define PVIOMMU_VENDOR_OP_BLOCK                 8
/* make a context that translates by tables in guest memory, which the guest owns and changes */
/* as it likes */
#define PVIOMMU_VENDOR_OP_ALLOC_TABLES          9
/* wait until all DMA is over that such a context translated before */
#define PVIOMMU_VENDOR_OP_FLUSH                 10

/* Flags of BATCH. */
/* unmap the elements; mfn and flags of each are ignored then */
#define PVIOMMU_BATCH_UNMAP                     0x1

/* Flags of ALLOC_TABLES. */
/* the device sets accessed bits, and in leaves that it writes through dirty bits, by atomic */
/* compare and exchange */
#define PVIOMMU_TABLES_DIRTY                    0x1

/**
 * struct pviommu_slot - Header of a slot
 * @op_class: class of the operation (PVIOMMU_CLASS_*)
 * @op: operation of classes that number it here, else 0
 * @flags: PVIOMMU_SLOT_*
 * @sequence: chosen by the guest; echoed in completed
 * @result: OUT: 0 or a negative errno
 * @completed: OUT: sequence, written once result and payload are in place
 */
struct pviommu_slot {
	__u8	op_class;
	__u8	op;
	__le16	flags;
	__le32	sequence;
	__le32	result;
	__le32	completed;
};
static_assert(sizeof(struct pviommu_slot) == 16);

/**
 * struct pviommu_op_head - Common head of pv_iommu_op, for the operations that use nothing else
 * @subop_id: Xen2024Op
 * @ctx_no: context; OUT for ALLOC_CONTEXT
 * @flags: meaning depends on the operation
 */
struct pviommu_op_head {
	__le16	subop_id;
	__le16	ctx_no;
	__le32	flags;
};
static_assert(sizeof(struct pviommu_op_head) == 8);

/**
 * struct pviommu_op_query_capabilities - QUERY_CAPABILITIES: everything after flags is OUT
 * @subop_id: 1
 * @ctx_no: ignored
 * @flags: 0
 * @max_ctx_no: OUT: number of contexts besides the default one; ids are 1 to this
 * @pad0: 0
 * @max_nr_pages: OUT: most pages in one map or unmap
 * @max_iova_addr: OUT: last legal device address, inclusive
 */
struct pviommu_op_query_capabilities {
	__le16	subop_id;
	__le16	ctx_no;
	__le32	flags;
	__le16	max_ctx_no;
	__le16	pad0;
	__le32	max_nr_pages;
	__le64	max_iova_addr;
};
static_assert(sizeof(struct pviommu_op_query_capabilities) == 24);

/**
 * struct pviommu_op_map_pages - MAP_PAGES: map nr_pages pages from gfn at dfn
 * @subop_id: 5
 * @ctx_no: context
 * @flags: MapFlags
 * @gfn: first guest frame
 * @dfn: first device frame
 * @nr_pages: pages to map
 * @mapped: OUT: pages mapped, also on error
 */
struct pviommu_op_map_pages {
	__le16	subop_id;
	__le16	ctx_no;
	__le32	flags;
	__le64	gfn;
	__le64	dfn;
	__le32	nr_pages;
	__le32	mapped;
};
static_assert(sizeof(struct pviommu_op_map_pages) == 32);

/**
 * struct pviommu_op_unmap_pages - UNMAP_PAGES: note that dfn lies where MAP_PAGES has gfn
 * @subop_id: 6
 * @ctx_no: context
 * @flags: 0
 * @dfn: first device frame
 * @nr_pages: pages to unmap
 * @unmapped: OUT: pages unmapped, also on error
 */
struct pviommu_op_unmap_pages {
	__le16	subop_id;
	__le16	ctx_no;
	__le32	flags;
	__le64	dfn;
	__le32	nr_pages;
	__le32	unmapped;
};
static_assert(sizeof(struct pviommu_op_unmap_pages) == 24);

/**
 * struct pviommu_op_reattach_device - REATTACH_DEVICE: move a bound endpoint to ctx_no
 * @subop_id: 4
 * @ctx_no: target context, 0 included
 * @flags: 0
 * @seg: PCI segment
 * @bus: PCI bus
 * @devfn: device << 3 | function
 */
struct pviommu_op_reattach_device {
	__le16	subop_id;
	__le16	ctx_no;
	__le32	flags;
	__le16	seg;
	__u8	bus;
	__u8	devfn;
};
static_assert(sizeof(struct pviommu_op_reattach_device) == 12);

/**
 * struct pviommu_op_lookup_page - LOOKUP_PAGE: the gfn comes first
 * @subop_id: 7
 * @ctx_no: context
 * @flags: 0
 * @gfn: OUT: guest frame; untouched on error
 * @dfn: device frame
 */
struct pviommu_op_lookup_page {
	__le16	subop_id;
	__le16	ctx_no;
	__le32	flags;
	__le64	gfn;
	__le64	dfn;
};
static_assert(sizeof(struct pviommu_op_lookup_page) == 24);

/**
 * struct pviommu_v7_capabilities - QUERY_CAPABILITIES: all fields are OUT
 * @max_iova_addr: OUT: last legal device address, inclusive
 * @cap_flags: OUT: V7Capability
 * @pgsize_mask: OUT: page sizes that pgsize may name
 * @max_pasid: OUT: 0
 * @max_ctx_no: OUT: contexts besides the default one; 0 before INIT
 * @pad0: OUT: 0
 */
struct pviommu_v7_capabilities {
	__le64	max_iova_addr;
	__le32	cap_flags;
	__le32	pgsize_mask;
	__le32	max_pasid;
	__le16	max_ctx_no;
	__le16	pad0;
};
static_assert(sizeof(struct pviommu_v7_capabilities) == 24);

/**
 * struct pviommu_v7_init - INIT: once after the profile was selected
 * @max_ctx_no: contexts besides the default one
 * @arena_order: binary logarithm of the page-table pages wanted
 */
struct pviommu_v7_init {
	__le32	max_ctx_no;
	__le32	arena_order;
};
static_assert(sizeof(struct pviommu_v7_init) == 8);

/**
 * struct pviommu_v7_alloc - ALLOC_CONTEXT
 * @ctx_no: OUT: the context
 * @pad0: 0
 * @alloc_flags: V7AllocFlags
 */
struct pviommu_v7_alloc {
	__le16	ctx_no;
	__le16	pad0;
	__le32	alloc_flags;
};
static_assert(sizeof(struct pviommu_v7_alloc) == 8);

/**
 * struct pviommu_v7_free - FREE_CONTEXT
 * @ctx_no: context
 * @pad0: 0
 * @free_flags: V7FreeFlags
 */
struct pviommu_v7_free {
	__le16	ctx_no;
	__le16	pad0;
	__le32	free_flags;
};
static_assert(sizeof(struct pviommu_v7_free) == 8);

/**
 * struct pviommu_v7_map_pages - MAP_PAGES. mapped is added to, so the guest sets it to 0 first
 * @ctx_no: context
 * @pad0: 0
 * @pad1: 0
 * @gfn: first guest frame
 * @dfn: first device frame
 * @map_flags: V7MapFlags
 * @pgsize: 4096
 * @nr_pages: pages to map; no limit
 * @mapped: INOUT: grows by the pages mapped, also on error
 */
struct pviommu_v7_map_pages {
	__le16	ctx_no;
	__le16	pad0;
	__le32	pad1;
	__le64	gfn;
	__le64	dfn;
	__le32	map_flags;
	__le32	pgsize;
	__le32	nr_pages;
	__le32	mapped;
};
static_assert(sizeof(struct pviommu_v7_map_pages) == 40);

/**
 * struct pviommu_v7_unmap_pages - UNMAP_PAGES. unmapped is added to
 * @ctx_no: context
 * @pad0: 0
 * @pad1: 0
 * @dfn: first device frame
 * @pgsize: 4096
 * @nr_pages: pages to unmap; no limit
 * @unmapped: INOUT: grows by the pages unmapped, also on error
 * @pad2: 0
 */
struct pviommu_v7_unmap_pages {
	__le16	ctx_no;
	__le16	pad0;
	__le32	pad1;
	__le64	dfn;
	__le32	pgsize;
	__le32	nr_pages;
	__le32	unmapped;
	__le32	pad2;
};
static_assert(sizeof(struct pviommu_v7_unmap_pages) == 32);

/**
 * struct pviommu_v7_reattach_device - REATTACH_DEVICE
 * @ctx_no: target context, 0 included
 * @seg: PCI segment
 * @bus: PCI bus
 * @devfn: device << 3 | function
 * @pad0: 0
 * @pasid: 0
 */
struct pviommu_v7_reattach_device {
	__le16	ctx_no;
	__le16	seg;
	__u8	bus;
	__u8	devfn;
	__le16	pad0;
	__le32	pasid;
};
static_assert(sizeof(struct pviommu_v7_reattach_device) == 12);

/**
 * struct pviommu_v7_remote_cmd - REMOTE_CMD: carry out subop, whose structure lies at guest physical address arg, for domain domid
 * @domid: 0 or DOMID_SELF
 * @subop: XenV7Op, but not REMOTE_CMD
 * @pad0: 0
 * @arg: guest physical address of the structure
 */
struct pviommu_v7_remote_cmd {
	__le16	domid;
	__le16	subop;
	__le32	pad0;
	__le64	arg;
};
static_assert(sizeof(struct pviommu_v7_remote_cmd) == 16);

/**
 * struct pviommu_op_binding - BIND, UNBIND, QUERY_ENDPOINT and BLOCK
 * @seg: PCI segment
 * @bus: PCI bus
 * @devfn: device << 3 | function
 * @stream: stream id; IN for BIND, OUT for QUERY_ENDPOINT
 * @ctx_no: OUT of QUERY_ENDPOINT: the context it is attached to
 * @blocked: OUT of QUERY_ENDPOINT: 1 while it reaches nothing, whatever the context
 * @pad0: 0
 */
struct pviommu_op_binding {
	__le16	seg;
	__u8	bus;
	__u8	devfn;
	__le32	stream;
	__le16	ctx_no;
	__le16	blocked;
	__le32	pad0;
};
static_assert(sizeof(struct pviommu_op_binding) == 16);

/**
 * struct pviommu_op_batch - BATCH: -EFAULT if an element fails or the array is not in guest memory; later elements are not looked at
 * @address: guest physical address of the array, a multiple of 8
 * @count: elements of 24 bytes
 * @flags: BatchFlags
 * @ctx_no: context
 * @pad0: 0
 * @done: OUT: elements carried out before the first that failed
 */
struct pviommu_op_batch {
	__le64	address;
	__le32	count;
	__le32	flags;
	__le16	ctx_no;
	__le16	pad0;
	__le32	done;
};
static_assert(sizeof(struct pviommu_op_batch) == 24);

/**
 * struct pviommu_map_op - Element of a batch, iommu_map_op of 2014, one page each
 * @bfn: device frame
 * @mfn: guest frame
 * @flags: MapFlags
 * @status: OUT: 0 or a negative errno
 */
struct pviommu_map_op {
	__le64	bfn;
	__le64	mfn;
	__le32	flags;
	__le32	status;
};
static_assert(sizeof(struct pviommu_map_op) == 24);

/**
 * struct pviommu_op_call - CALL: -EFAULT if the structure cannot be read, or not be written back; what was done stays done
 * @address: guest physical address of the structure, a multiple of 8
 * @op: XenV7Op; 0 under profile xen-2024, whose structure holds its number
 * @pad0: 0
 */
struct pviommu_op_call {
	__le64	address;
	__le32	op;
	__le32	pad0;
};
static_assert(sizeof(struct pviommu_op_call) == 16);

/**
 * struct pviommu_op_reserve - RESERVE: the context holds at least pages pages of the pool from now on, whatever it has mapped
 * @ctx_no: context
 * @pad0: 0
 * @pages: pool pages, the root's included
 */
struct pviommu_op_reserve {
	__le16	ctx_no;
	__le16	pad0;
	__le32	pages;
};
static_assert(sizeof(struct pviommu_op_reserve) == 8);

/**
 * struct pviommu_op_usage - QUERY_USAGE: all fields are OUT
 * @contexts: contexts allocated, the default one not counted
 * @bindings: functions bound
 * @pool_used: page-table pages charged
 * @pool_total: page-table pages of the pool
 * @mapped_pages: pages mapped in all contexts
 * @events_lost: events dropped because the ring was full, since reset
 */
struct pviommu_op_usage {
	__le32	contexts;
	__le32	bindings;
	__le32	pool_used;
	__le32	pool_total;
	__le64	mapped_pages;
	__le64	events_lost;
};
static_assert(sizeof(struct pviommu_op_usage) == 32);

/**
 * struct pviommu_op_alloc_tables - ALLOC_TABLES: make a context whose tables the guest owns
 * @format: TableFormat
 * @flags: TablesFlags
 * @root: guest physical address of the table of the highest level, a multiple of 4096
 * @aperture_bits: device addresses from ``1 << aperture_bits`` on are refused
 * @ctx_no: OUT: the context
 * @pad0: 0
 * @line: OUT: index of its InFlightLine, which contexts may share
 * @pad1: 0
 */
struct pviommu_op_alloc_tables {
	__le32	format;
	__le32	flags;
	__le64	root;
	__le32	aperture_bits;
	__le16	ctx_no;
	__le16	pad0;
	__le32	line;
	__le32	pad1;
};
static_assert(sizeof(struct pviommu_op_alloc_tables) == 32);

/**
 * struct pviommu_op_flush - FLUSH: wait for the DMA of a context with guest tables
 * @ctx_no: context
 * @pad0: 0
 * @pad1: 0
 */
struct pviommu_op_flush {
	__le16	ctx_no;
	__le16	pad0;
	__le32	pad1;
};
static_assert(sizeof(struct pviommu_op_flush) == 8);

#endif /* _PVIOMMU_ABI_H */
