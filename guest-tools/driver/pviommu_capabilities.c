// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: the capability area of the shared memory, and the PCI capability of functions
 * behind a PV-IOMMU.
 */

#define pr_fmt(fmt) "pviommu: " fmt

#include <linux/slab.h>

#include "pviommu.h"

#define PVIOMMU_CAPABILITY_TRIES	16
/* more than the area has room for */
#define PVIOMMU_CAPABILITY_MOST \
	(PVIOMMU_CAPABILITY_SIZE / sizeof(struct pviommu_capability_header))
#define PVIOMMU_ENDPOINT_FIELD(name)	offsetof(struct pviommu_endpoint_capability, name)

/* Copies the area while the device does not write to it. */
static int pviommu_capabilities_copy(struct pviommu *pv, void *copy)
{
	struct pviommu_capability_area *area = pv->shared + PVIOMMU_CAPABILITY_OFFSET;
	unsigned int i;
	u32 before;

	for (i = 0; i < PVIOMMU_CAPABILITY_TRIES; i++) {
		/* the area is read after this ... */
		before = le32_to_cpu(virt_load_acquire(&area->generation));
		if (before & 1) {
			cpu_relax();
			continue;
		}
		memcpy(copy, area, PVIOMMU_CAPABILITY_SIZE);
		/* ... and before this */
		virt_rmb();
		if (le32_to_cpu(READ_ONCE(area->generation)) == before)
			return 0;
	}
	return -EAGAIN;
}

static void pviommu_read_limits(struct pviommu_capabilities *caps,
				const struct pviommu_limits *limits)
{
	caps->page_sizes = le64_to_cpu(limits->page_sizes);
	caps->max_nr_pages = le32_to_cpu(limits->max_nr_pages);
	caps->max_contexts = le32_to_cpu(limits->max_contexts);
	caps->pool_pages = le32_to_cpu(limits->pool_pages);
	caps->rings = le32_to_cpu(limits->rings);
	caps->aperture_bits = le32_to_cpu(limits->aperture_bits);
	caps->identity_default = le32_to_cpu(limits->default_policy);
}

static int pviommu_read_guest_tables(struct pviommu_capabilities *caps,
				     const struct pviommu_guest_tables *tables)
{
	u64 end;

	caps->table_formats = le32_to_cpu(tables->formats);
	caps->in_flight_offset = le32_to_cpu(tables->offset);
	caps->nr_lines = le32_to_cpu(tables->lines);
	caps->line_stride = le32_to_cpu(tables->stride);
	end = caps->in_flight_offset + (u64)caps->nr_lines * caps->line_stride;
	return caps->nr_lines && caps->line_stride >= sizeof(struct pviommu_in_flight_line) &&
	       IS_ALIGNED(caps->in_flight_offset | caps->line_stride, sizeof(u32)) &&
	       end <= PVIOMMU_SHARED_BAR_SIZE ? 0 : -EINVAL;
}

static void pviommu_read_entry(struct pviommu_capabilities *caps, u16 id, unsigned int i,
			       const void *entry)
{
	const struct pviommu_address_range *range = entry;
	const struct pviommu_reserved_region *region = entry;
	const struct pviommu_endpoint_entry *endpoint = entry;
	struct pviommu_range *out = id == PVIOMMU_CAP_IOVA_RANGES ? &caps->iova[i] : &caps->ram[i];

	switch (id) {
	case PVIOMMU_CAP_IOVA_RANGES:
	case PVIOMMU_CAP_RAM_RANGES:
		out->start = le64_to_cpu(range->start);
		out->last = le64_to_cpu(range->last);
		break;
	case PVIOMMU_CAP_RESERVED_REGIONS:
		caps->reserved[i].range.start = le64_to_cpu(region->start);
		caps->reserved[i].range.last = le64_to_cpu(region->last);
		caps->reserved[i].kind = le32_to_cpu(region->kind);
		caps->reserved[i].stream = le32_to_cpu(region->stream);
		break;
	case PVIOMMU_CAP_ENDPOINTS:
		caps->endpoints[i] = le32_to_cpu(endpoint->stream);
		break;
	}
}

static unsigned int *pviommu_list_of(struct pviommu_capabilities *caps, u16 id, size_t *entry_size)
{
	switch (id) {
	case PVIOMMU_CAP_IOVA_RANGES:
		*entry_size = sizeof(struct pviommu_address_range);
		return &caps->nr_iova;
	case PVIOMMU_CAP_RAM_RANGES:
		*entry_size = sizeof(struct pviommu_address_range);
		return &caps->nr_ram;
	case PVIOMMU_CAP_RESERVED_REGIONS:
		*entry_size = sizeof(struct pviommu_reserved_region);
		return &caps->nr_reserved;
	case PVIOMMU_CAP_ENDPOINTS:
		*entry_size = sizeof(struct pviommu_endpoint_entry);
		return &caps->nr_endpoints;
	default:
		return NULL;
	}
}

/* Allocates an empty list. */
static int pviommu_alloc_list(struct pviommu_capabilities *caps, u16 id, unsigned int entries)
{
	switch (id) {
	case PVIOMMU_CAP_IOVA_RANGES:
		caps->iova = kcalloc(entries, sizeof(*caps->iova), GFP_KERNEL);
		return caps->iova ? 0 : -ENOMEM;
	case PVIOMMU_CAP_RAM_RANGES:
		caps->ram = kcalloc(entries, sizeof(*caps->ram), GFP_KERNEL);
		return caps->ram ? 0 : -ENOMEM;
	case PVIOMMU_CAP_RESERVED_REGIONS:
		caps->reserved = kcalloc(entries, sizeof(*caps->reserved), GFP_KERNEL);
		return caps->reserved ? 0 : -ENOMEM;
	default:
		caps->endpoints = kcalloc(entries, sizeof(*caps->endpoints), GFP_KERNEL);
		return caps->endpoints ? 0 : -ENOMEM;
	}
}

/* Reads one capability whose body is @room bytes at @body; unknown ones are skipped. */
static int pviommu_read_capability(struct pviommu_capabilities *caps, u16 id, const void *body,
				   size_t room)
{
	const struct pviommu_capability_count *count = body;
	unsigned int *length, i;
	u32 entries;
	size_t size;

	if (id == PVIOMMU_CAP_LIMITS) {
		if (room < sizeof(struct pviommu_limits))
			return -EINVAL;
		pviommu_read_limits(caps, body);
		return 0;
	}
	if (id == PVIOMMU_CAP_GUEST_TABLES) {
		if (room < sizeof(struct pviommu_guest_tables))
			return -EINVAL;
		return pviommu_read_guest_tables(caps, body);
	}
	length = pviommu_list_of(caps, id, &size);
	if (!length)
		return 0;
	if (room < sizeof(*count))
		return -EINVAL;
	entries = le32_to_cpu(count->count);
	if (entries > (room - sizeof(*count)) / size)
		return -EINVAL;
	/* a second list of the same kind is not supported */
	if (*length)
		return -EINVAL;
	if (!entries)
		return 0;
	if (pviommu_alloc_list(caps, id, entries))
		return -ENOMEM;
	*length = entries;
	for (i = 0; i < entries; i++)
		pviommu_read_entry(caps, id, i, body + sizeof(*count) + i * size);
	return 0;
}

static int pviommu_capabilities_walk(struct pviommu_capabilities *caps, const void *copy)
{
	const struct pviommu_capability_area *area = copy;
	const struct pviommu_capability_header *header;
	u32 at = le32_to_cpu(area->first);
	unsigned int i;
	int ret;

	if (le32_to_cpu(area->magic) != PVIOMMU_CAPABILITY_MAGIC)
		return -EINVAL;
	for (i = 0; at && i < PVIOMMU_CAPABILITY_MOST; i++) {
		if (at > PVIOMMU_CAPABILITY_SIZE - sizeof(*header) || !IS_ALIGNED(at, sizeof(u32)))
			return -EINVAL;
		header = copy + at;
		ret = pviommu_read_capability(caps, le16_to_cpu(header->cap_id), header + 1,
					      PVIOMMU_CAPABILITY_SIZE - sizeof(*header) - at);
		if (ret)
			return ret;
		at = le32_to_cpu(header->next);
	}
	return at ? -ELOOP : 0;
}

/* The body of the first capability of this kind; NULL without one of @size bytes at least. */
static const void *pviommu_capability_find(const void *copy, u16 id, size_t size)
{
	const struct pviommu_capability_area *area = copy;
	const struct pviommu_capability_header *header;
	u32 at = le32_to_cpu(area->first);
	unsigned int i;

	for (i = 0; at && i < PVIOMMU_CAPABILITY_MOST; i++) {
		if (at > PVIOMMU_CAPABILITY_SIZE - sizeof(*header) || !IS_ALIGNED(at, sizeof(u32)))
			return NULL;
		header = copy + at;
		if (le16_to_cpu(header->cap_id) == id)
			return PVIOMMU_CAPABILITY_SIZE - sizeof(*header) - at < size ? NULL :
			       header + 1;
		at = le32_to_cpu(header->next);
	}
	return NULL;
}

static void pviommu_frames_add(struct pviommu_frames *frames, u64 first, u64 last)
{
	if (first > last || frames->nr == frames->room)
		return;
	frames->ranges[frames->nr].start = first;
	frames->ranges[frames->nr].last = last;
	frames->nr++;
}

/* Whole pages of a range of bytes. */
static void pviommu_frames_of(struct pviommu_frames *frames, const struct pviommu_range *range)
{
	u64 first = range->start >> PVIOMMU_PAGE_SHIFT, last = range->last >> PVIOMMU_PAGE_SHIFT;

	if (range->start & (BIT(PVIOMMU_PAGE_SHIFT) - 1))
		first++;
	/* a page that extends beyond the range; a map can never use the first one */
	if (~range->last & (BIT(PVIOMMU_PAGE_SHIFT) - 1) && last)
		last--;
	pviommu_frames_add(frames, first, last);
}

/*
 * Removes the pages that a range of bytes touches. That adds at most one range, unless the device's
 * ranges overlap; what does not fit then is removed too.
 */
static void pviommu_frames_cut(struct pviommu_frames *frames, const struct pviommu_range *range)
{
	u64 first = range->start >> PVIOMMU_PAGE_SHIFT, last = range->last >> PVIOMMU_PAGE_SHIFT;
	unsigned int i, nr = frames->nr;
	struct pviommu_range *part;
	u64 end;

	for (i = 0; i < nr; i++) {
		part = &frames->ranges[i];
		if (part->start > last || part->last < first)
			continue;
		end = part->last;
		pviommu_frames_add(frames, max(part->start, last + 1), end);
		/* an empty range has no pages */
		part->last = first ? min(end, first - 1) : 0;
		if (part->start >= first)
			part->start = U64_MAX;
	}
}

/*
 * What maps may use without asking the device: IOVA ranges outside all reserved regions, and guest
 * memory.
 */
static int pviommu_frames_init(struct pviommu *pv)
{
	const struct pviommu_capabilities *caps = &pv->caps;
	unsigned int i;

	pv->dfns.room = caps->nr_iova + caps->nr_reserved;
	pv->dfns.ranges = kcalloc(pv->dfns.room, sizeof(*pv->dfns.ranges), GFP_KERNEL);
	pv->gfns.room = caps->nr_ram;
	pv->gfns.ranges = kcalloc(pv->gfns.room, sizeof(*pv->gfns.ranges), GFP_KERNEL);
	if (!pv->dfns.ranges || !pv->gfns.ranges)
		return -ENOMEM;
	for (i = 0; i < caps->nr_iova; i++)
		pviommu_frames_of(&pv->dfns, &caps->iova[i]);
	for (i = 0; i < caps->nr_reserved; i++)
		pviommu_frames_cut(&pv->dfns, &caps->reserved[i].range);
	for (i = 0; i < caps->nr_ram; i++)
		pviommu_frames_of(&pv->gfns, &caps->ram[i]);
	return 0;
}

/* Also after an error of pviommu_capabilities_read(). */
void pviommu_capabilities_free(struct pviommu *pv)
{
	kfree(pv->gfns.ranges);
	kfree(pv->dfns.ranges);
	kfree(pv->caps.endpoints);
	kfree(pv->caps.ram);
	kfree(pv->caps.reserved);
	kfree(pv->caps.iova);
}

/**
 * pviommu_capabilities_read - reads the capability area
 * @pv: the PV-IOMMU
 *
 * Return: 0, or a negative errno after one line in the log.
 */
int pviommu_capabilities_read(struct pviommu *pv)
{
	struct pviommu_capabilities *caps = &pv->caps;
	void *copy;
	int ret;

	copy = kmalloc(PVIOMMU_CAPABILITY_SIZE, GFP_KERNEL);
	if (!copy)
		return -ENOMEM;
	ret = pviommu_capabilities_copy(pv, copy) ?: pviommu_capabilities_walk(caps, copy);
	kfree(copy);
	if (ret) {
		dev_err(pviommu_dev(pv), "the capability area cannot be read: %pe\n", ERR_PTR(ret));
		return ret;
	}
	if (!(caps->page_sizes & BIT(PVIOMMU_PAGE_SHIFT)) || !caps->max_nr_pages ||
	    caps->aperture_bits <= PVIOMMU_PAGE_SHIFT || caps->aperture_bits > 64) {
		dev_err(pviommu_dev(pv), "unusable limits: page sizes %#llx, %u pages, %u address bits\n",
			caps->page_sizes, caps->max_nr_pages, caps->aperture_bits);
		return -EINVAL;
	}
	return pviommu_frames_init(pv);
}

/**
 * pviommu_fault_page - finds the page that counts what the device's fault rules did
 * @pv: the PV-IOMMU
 * @size: bytes of the page
 *
 * Rules come and go while the device runs, so the capability area is read anew.
 *
 * Return: the page, NULL while there are no rules, or an ERR_PTR().
 */
const struct pviommu_fault_page *pviommu_fault_page(struct pviommu *pv, u32 *size)
{
	const struct pviommu_fault_rules *where;
	void *copy, *page = NULL;
	u32 offset;
	int ret;

	copy = kmalloc(PVIOMMU_CAPABILITY_SIZE, GFP_KERNEL);
	if (!copy)
		return ERR_PTR(-ENOMEM);
	ret = pviommu_capabilities_copy(pv, copy);
	if (ret) {
		kfree(copy);
		return ERR_PTR(ret);
	}
	where = pviommu_capability_find(copy, PVIOMMU_CAP_FAULT_RULES, sizeof(*where));
	if (where) {
		offset = le32_to_cpu(where->offset);
		*size = le32_to_cpu(where->size);
		page = pv->shared + offset;
		if (!IS_ALIGNED(offset, sizeof(u64)) || *size < sizeof(struct pviommu_fault_page) ||
		    offset > PVIOMMU_SHARED_BAR_SIZE || *size > PVIOMMU_SHARED_BAR_SIZE - offset)
			page = ERR_PTR(-EINVAL);
	}
	kfree(copy);
	return page;
}

/**
 * pviommu_endpoint_capability - finds the capability that all functions behind a PV-IOMMU have
 * @pdev: the function
 * @instance: instance of its PV-IOMMU
 * @stream: its stream id
 *
 * Return: 0, or -ENODEV when it has none.
 */
int pviommu_endpoint_capability(struct pci_dev *pdev, u32 *instance, u32 *stream)
{
	u8 pos = pci_find_capability(pdev, PCI_CAP_ID_VNDR);
	u8 length, version;
	u32 signature;

	for (; pos; pos = pci_find_next_capability(pdev, pos, PCI_CAP_ID_VNDR)) {
		pci_read_config_byte(pdev, pos + PVIOMMU_ENDPOINT_FIELD(length), &length);
		pci_read_config_byte(pdev, pos + PVIOMMU_ENDPOINT_FIELD(version), &version);
		pci_read_config_dword(pdev, pos + PVIOMMU_ENDPOINT_FIELD(signature), &signature);
		if (length != sizeof(struct pviommu_endpoint_capability) ||
		    version != PVIOMMU_ABI_VERSION || signature != PVIOMMU_ENDPOINT_SIGNATURE)
			continue;
		pci_read_config_dword(pdev, pos + PVIOMMU_ENDPOINT_FIELD(instance), instance);
		pci_read_config_dword(pdev, pos + PVIOMMU_ENDPOINT_FIELD(stream), stream);
		return 0;
	}
	return -ENODEV;
}
