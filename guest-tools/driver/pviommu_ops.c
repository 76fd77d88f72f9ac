// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: one function for each operation that the driver uses. Each profile has a table
 * for what differs; the vendor operations are the same under all.
 */

#define pr_fmt(fmt) "pviommu: " fmt

#include <linux/io.h>

#include "pviommu.h"

static const struct pviommu_profile *const pviommu_profiles[] = { &pviommu_xen_2024,
								  &pviommu_xen_v7 };

const struct pviommu_profile *pviommu_profile_find(const char *name)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(pviommu_profiles); i++)
		if (!strcmp(pviommu_profiles[i]->name, name))
			return pviommu_profiles[i];
	return NULL;
}

int pviommu_op_init(struct pviommu *pv)
{
	return pv->profile->init ? pv->profile->init(pv) : 0;
}

int pviommu_op_alloc_context(struct pviommu *pv, u16 *ctx)
{
	return pv->profile->alloc(pv, ctx);
}

int pviommu_op_free_context(struct pviommu *pv, u16 ctx)
{
	return pv->profile->free(pv, ctx);
}

int pviommu_op_reattach(struct pviommu *pv, u32 sbdf, u16 ctx)
{
	return pv->profile->reattach(pv, sbdf, ctx);
}

static void pviommu_vendor_command(struct pviommu_command *command, u8 op, u32 sbdf)
{
	pviommu_command_clear(command);
	command->slot.op_class = PVIOMMU_CLASS_VENDOR;
	command->slot.op = op;
	command->op.binding.seg = cpu_to_le16(sbdf >> 16);
	command->op.binding.bus = PCI_BUS_NUM(sbdf);
	command->op.binding.devfn = sbdf & 0xff;
}

int pviommu_op_bind(struct pviommu *pv, u32 sbdf, u32 stream)
{
	struct pviommu_command command;

	pviommu_vendor_command(&command, PVIOMMU_VENDOR_OP_BIND, sbdf);
	command.op.binding.stream = cpu_to_le32(stream);
	return pviommu_submit(pv, &command, PVIOMMU_WAIT_SLEEP);
}

int pviommu_op_unbind(struct pviommu *pv, u32 sbdf)
{
	struct pviommu_command command;

	pviommu_vendor_command(&command, PVIOMMU_VENDOR_OP_UNBIND, sbdf);
	return pviommu_submit(pv, &command, PVIOMMU_WAIT_SLEEP);
}

/* Blocks a function: it reaches nothing until it is attached again. */
int pviommu_op_block(struct pviommu *pv, u32 sbdf)
{
	struct pviommu_command command;

	pviommu_vendor_command(&command, PVIOMMU_VENDOR_OP_BLOCK, sbdf);
	return pviommu_submit(pv, &command, PVIOMMU_WAIT_SLEEP);
}

/**
 * pviommu_op_alloc_tables - allocates a context whose tables the guest owns
 * @pv: the PV-IOMMU
 * @root: guest address of the table of the highest level, in the format of VT-d's second stage
 * @flags: PVIOMMU_TABLES_*
 * @bits: bits of a device address
 * @ctx: the context
 * @line: index of its in-flight line
 *
 * Return: 0 or the negative errno of the device.
 */
int pviommu_op_alloc_tables(struct pviommu *pv, u64 root, u32 flags, unsigned int bits, u16 *ctx,
			    u32 *line)
{
	struct pviommu_command command;
	int ret;

	pviommu_command_clear(&command);
	command.slot.op_class = PVIOMMU_CLASS_VENDOR;
	command.slot.op = PVIOMMU_VENDOR_OP_ALLOC_TABLES;
	command.op.tables.format = cpu_to_le32(PVIOMMU_TABLE_FORMAT_VTD_SS);
	command.op.tables.flags = cpu_to_le32(flags);
	command.op.tables.root = cpu_to_le64(root);
	command.op.tables.aperture_bits = cpu_to_le32(bits);
	ret = pviommu_submit(pv, &command, PVIOMMU_WAIT_SLEEP);
	if (ret)
		return ret;
	*ctx = le16_to_cpu(command.op.tables.ctx_no);
	*line = le32_to_cpu(command.op.tables.line);
	return 0;
}

/*
 * Waits until all DMA is over that such a context translated before; also where sleeping is not
 * allowed. It goes the way of that context's other commands, and so keeps nobody else waiting.
 */
int pviommu_op_flush(struct pviommu *pv, u16 ctx)
{
	struct pviommu_ring *ring = pviommu_ring_of(pv, ctx);
	struct pviommu_answer answer;

	pviommu_command_clear(&answer.command);
	answer.command.slot.op_class = PVIOMMU_CLASS_VENDOR;
	answer.command.slot.op = PVIOMMU_VENDOR_OP_FLUSH;
	answer.command.op.flush.ctx_no = cpu_to_le16(ctx);
	return pviommu_ring_send(ring, &answer) ?:
	       pviommu_ring_take(ring, &answer, PVIOMMU_WAIT_BUSY);
}

/* What is in use after all that was sent: the device's counters and the driver's own. */
int pviommu_op_usage(struct pviommu *pv, struct pviommu_usage *usage)
{
	struct pviommu_command command;
	unsigned int i;
	int ret;

	/* so that this includes what is posted */
	pviommu_rings_sync(pv);
	pviommu_vendor_command(&command, PVIOMMU_VENDOR_OP_QUERY_USAGE, 0);
	ret = pviommu_submit(pv, &command, PVIOMMU_WAIT_SLEEP);
	if (ret)
		return ret;
	usage->contexts = le32_to_cpu(command.op.usage.contexts);
	usage->bindings = le32_to_cpu(command.op.usage.bindings);
	usage->pool_used = le32_to_cpu(command.op.usage.pool_used);
	usage->pool_total = le32_to_cpu(command.op.usage.pool_total);
	usage->mapped_pages = le64_to_cpu(command.op.usage.mapped_pages);
	usage->mapped_pages += pviommu_guest_mapped_pages(pv);
	usage->events_lost = le64_to_cpu(command.op.usage.events_lost);
	usage->domains = atomic_read(&pv->nr_domains);
	usage->table_pages = atomic_read(&pv->nr_tables);
	usage->endpoints = atomic_read(&pv->nr_endpoints);
	usage->rings = pv->nr_rings;
	usage->slots_in_flight = 0;
	usage->posted = 0;
	usage->waited = 0;
	usage->doorbells = 0;
	usage->rescues = 0;
	for (i = 0; i < pv->nr_rings; i++) {
		usage->slots_in_flight += pviommu_ring_in_flight(&pv->rings[i]);
		usage->posted += READ_ONCE(pv->rings[i].posted);
		usage->waited += READ_ONCE(pv->rings[i].waited);
		usage->doorbells += READ_ONCE(pv->rings[i].doorbells);
		usage->rescues += READ_ONCE(pv->rings[i].rescues);
	}
	usage->device_doorbells = readl(pv->regs + PVIOMMU_REG_DOORBELLS);
	return 0;
}
