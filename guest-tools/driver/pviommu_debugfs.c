// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU:
 * /sys/kernel/debug/pviommu/<PCI address>/{capabilities,usage,events,fault_rules}
 */

#define pr_fmt(fmt) "pviommu: " fmt

#include <linux/debugfs.h>
#include <linux/seq_file.h>

#include "pviommu.h"

static struct dentry *pviommu_debugfs_root;

static const struct {
	u32 feature;
	const char *name;
} pviommu_interfaces[] = {
	{ PVIOMMU_FEATURE_PROFILE_XEN_2024, "xen-2024" },
	{ PVIOMMU_FEATURE_PROFILE_XEN_V7, "xen-v7" },
	{ PVIOMMU_FEATURE_BATCH_2014, "batch-2014" },
};

static const char *const pviommu_table_formats[] = {
	[PVIOMMU_TABLE_FORMAT_VTD_SS] = "vtd-ss",
	[PVIOMMU_TABLE_FORMAT_X86_64] = "x86-64",
};

static const char *pviommu_region_kind(u32 kind)
{
	switch (kind) {
	case PVIOMMU_REGION_MSI:
		return "msi";
	case PVIOMMU_REGION_DIRECT:
		return "direct";
	default:
		return "reserved";
	}
}

static int capabilities_show(struct seq_file *s, void *unused)
{
	struct pviommu *pv = s->private;
	const struct pviommu_capabilities *caps = &pv->caps;
	unsigned int i;

	seq_printf(s, "instance %u\n", pv->instance);
	seq_puts(s, "profiles");
	for (i = 0; i < ARRAY_SIZE(pviommu_interfaces); i++)
		if (caps->features & pviommu_interfaces[i].feature)
			seq_printf(s, " %s", pviommu_interfaces[i].name);
	seq_putc(s, '\n');
	seq_printf(s, "page_sizes %#llx\n", caps->page_sizes);
	seq_printf(s, "max_nr_pages %u\n", caps->max_nr_pages);
	seq_printf(s, "max_contexts %u\n", caps->max_contexts);
	seq_printf(s, "pool_pages %u\n", caps->pool_pages);
	seq_printf(s, "rings %u\n", caps->rings);
	seq_printf(s, "aperture_bits %u\n", caps->aperture_bits);
	seq_printf(s, "default_policy %s\n", caps->identity_default ? "identity" : "blocked");
	if (caps->features & PVIOMMU_FEATURE_GUEST_TABLES) {
		seq_puts(s, "table_formats");
		for (i = 0; i < ARRAY_SIZE(pviommu_table_formats); i++)
			if (caps->table_formats & BIT(i))
				seq_printf(s, " %s", pviommu_table_formats[i]);
		seq_putc(s, '\n');
	}
	for (i = 0; i < caps->nr_iova; i++)
		seq_printf(s, "iova_range %#llx %#llx\n", caps->iova[i].start, caps->iova[i].last);
	for (i = 0; i < caps->nr_reserved; i++) {
		const struct pviommu_reserved *region = &caps->reserved[i];

		seq_printf(s, "reserved %#llx %#llx %s ", region->range.start, region->range.last,
			   pviommu_region_kind(region->kind));
		if (region->stream == PVIOMMU_GLOBAL_STREAM)
			seq_puts(s, "global\n");
		else
			seq_printf(s, "stream %u\n", region->stream);
	}
	for (i = 0; i < caps->nr_endpoints; i++)
		seq_printf(s, "endpoint %u\n", caps->endpoints[i]);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(capabilities);

static int usage_show(struct seq_file *s, void *unused)
{
	struct pviommu *pv = s->private;
	struct pviommu_usage usage;
	int ret;

	ret = pviommu_op_usage(pv, &usage);
	if (ret)
		return ret;
	seq_printf(s, "profile %s\n", pv->profile->name);
	seq_printf(s, "tables %s\n", pv->has_tables ? "guest" : "device");
	seq_printf(s, "contexts %u\n", usage.contexts);
	seq_printf(s, "bindings %u\n", usage.bindings);
	seq_printf(s, "pool_used %u\n", usage.pool_used);
	seq_printf(s, "pool_total %u\n", usage.pool_total);
	seq_printf(s, "mapped_pages %llu\n", usage.mapped_pages);
	seq_printf(s, "events_lost %llu\n", usage.events_lost);
	seq_printf(s, "domains %u\n", usage.domains);
	seq_printf(s, "table_pages %u\n", usage.table_pages);
	seq_printf(s, "endpoints %u\n", usage.endpoints);
	seq_printf(s, "slots_in_flight %u\n", usage.slots_in_flight);
	seq_printf(s, "rings %u\n", usage.rings);
	seq_printf(s, "posted %llu\n", usage.posted);
	seq_printf(s, "waited %llu\n", usage.waited);
	seq_printf(s, "doorbells %llu\n", usage.doorbells);
	seq_printf(s, "rescues %llu\n", usage.rescues);
	seq_printf(s, "device_doorbells %u\n", usage.device_doorbells);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(usage);

static const char *pviommu_access(const struct pviommu_event *event)
{
	switch (event->access) {
	case PVIOMMU_ACCESS_READ:
		return "read";
	case PVIOMMU_ACCESS_WRITE:
		return "write";
	default:
		return "none";
	}
}

static int events_show(struct seq_file *s, void *unused)
{
	struct pviommu *pv = s->private;
	struct pviommu_event_ring *ring = &pv->events;
	struct pviommu_event *event;
	const char *reason;
	u32 i, count, sbdf;

	spin_lock(&ring->lock);
	count = min_t(u32, ring->logged, PVIOMMU_EVENT_LOG_ENTRIES);
	for (i = ring->logged - count; i != ring->logged; i++) {
		event = &ring->log[i % PVIOMMU_EVENT_LOG_ENTRIES];
		sbdf = le32_to_cpu(event->sbdf);
		reason = pviommu_event_reason(le16_to_cpu(event->reason));
		seq_printf(s, "%u %s %s %u %04x:%02x:%02x.%d %u %#llx\n",
			   le32_to_cpu(event->sequence), reason, pviommu_access(event),
			   le32_to_cpu(event->stream), sbdf >> 16, PCI_BUS_NUM(sbdf),
			   PCI_SLOT(sbdf), PCI_FUNC(sbdf), le16_to_cpu(event->ctx_no),
			   le64_to_cpu(event->iova));
	}
	spin_unlock(&ring->lock);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(events);

/* Nothing while the device follows no scenario of faults. */
static int fault_rules_show(struct seq_file *s, void *unused)
{
	const struct pviommu_fault_page *page;
	const struct pviommu_fault_rule *rule;
	u32 size, generation, count, step, i;

	page = pviommu_fault_page(s->private, &size);
	if (IS_ERR_OR_NULL(page))
		return PTR_ERR_OR_ZERO(page);
	/* pairs with the device, which makes it even after it has written other rules */
	generation = le32_to_cpu(virt_load_acquire(&page->generation));
	count = le32_to_cpu(READ_ONCE(page->rules));
	step = le32_to_cpu(READ_ONCE(page->record_size));
	if (le32_to_cpu(page->magic) != PVIOMMU_FAULT_PAGE_MAGIC || generation & 1)
		return -EAGAIN;
	if (step < sizeof(*rule) || !IS_ALIGNED(step, sizeof(u64)) ||
	    count > (size - sizeof(*page)) / step)
		return -EINVAL;
	seq_printf(s, "generation %u\n", generation);
	seq_printf(s, "seed %llu\n", le64_to_cpu(page->seed));
	seq_printf(s, "state %016llx\n", le64_to_cpu(READ_ONCE(page->state)));
	for (i = 0; i < count; i++) {
		rule = (const void *)(page + 1) + i * step;
		seq_printf(s, "rule %016llx %llu %llu %s\n", le64_to_cpu(rule->id_hash),
			   le64_to_cpu(READ_ONCE(rule->passed)),
			   le64_to_cpu(READ_ONCE(rule->fired)),
			   le32_to_cpu(rule->flags) & PVIOMMU_FAULT_RULE_ADVERSARIAL ?
			   "adversarial" : "conforming");
	}
	/* pairs with the device, which makes it odd before it writes other rules */
	virt_rmb();
	return le32_to_cpu(READ_ONCE(page->generation)) == generation ? 0 : -EAGAIN;
}
DEFINE_SHOW_ATTRIBUTE(fault_rules);

void pviommu_debugfs_init(void)
{
	pviommu_debugfs_root = debugfs_create_dir(KBUILD_MODNAME, NULL);
}

void pviommu_debugfs_exit(void)
{
	debugfs_remove(pviommu_debugfs_root);
}

void pviommu_debugfs_add(struct pviommu *pv)
{
	pv->debugfs = debugfs_create_dir(pci_name(pv->pdev), pviommu_debugfs_root);
	debugfs_create_file("capabilities", 0400, pv->debugfs, pv, &capabilities_fops);
	debugfs_create_file("usage", 0400, pv->debugfs, pv, &usage_fops);
	debugfs_create_file("events", 0400, pv->debugfs, pv, &events_fops);
	debugfs_create_file("fault_rules", 0400, pv->debugfs, pv, &fault_rules_fops);
}

void pviommu_debugfs_remove(struct pviommu *pv)
{
	debugfs_remove_recursive(pv->debugfs);
}
