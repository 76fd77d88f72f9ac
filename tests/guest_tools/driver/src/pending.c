// SPDX-License-Identifier: MIT
/*
 * The maps that a domain remembers, as a library, with a device that does what the test has said.
 */
#define _PVIOMMU_IOMMU_H	/* what the rest of the driver shares is here in short */

#include "kernel.h"

struct task_struct {
	int number;
};

static struct task_struct tasks[2];
static struct task_struct *current = &tasks[0];

/* @error, @mapped: what will come of the command */
struct pviommu_answer {
	u32 index;
	int error;
	u32 mapped;
	bool taken;
};

#include "pviommu_table.h"
#include "pviommu_pending.h"

enum pviommu_wait { PVIOMMU_WAIT_BUSY };

struct pviommu_domain {
	struct pviommu_table table;
	spinlock_t lock;
	unsigned int nr_pending;
	struct pviommu_pending pending[PVIOMMU_PENDING_MAPS];
};

static int pviommu_op_map_send(struct pviommu_domain *own, struct pviommu_answer *answer, u64 dfn,
			       u64 gfn, u32 nr_pages, u32 flags);
static int pviommu_op_map_wait(struct pviommu_domain *own, struct pviommu_answer *answer,
			       u32 nr_pages, u32 *mapped, enum pviommu_wait wait);

#include "pviommu_table.c"
#include "pviommu_pending.c"

static atomic_t pages;
static struct pviommu_answer next;
static u32 producer, in_flight, behind;
static bool sends = true;

static int pviommu_op_map_send(struct pviommu_domain *own, struct pviommu_answer *answer, u64 dfn,
			       u64 gfn, u32 nr_pages, u32 flags)
{
	if (!sends)
		return -EIO;
	*answer = next;
	answer->index = producer++;
	in_flight++;
	return 0;
}

static int pviommu_op_map_wait(struct pviommu_domain *own, struct pviommu_answer *answer,
			       u32 nr_pages, u32 *mapped, enum pviommu_wait wait)
{
	if (answer->taken)
		abort();
	answer->taken = true;
	*mapped = answer->mapped;
	behind = --in_flight;
	return answer->error;
}

struct pviommu_domain *domain_new(void)
{
	struct pviommu_domain *own = calloc(1, sizeof(*own));

	sends = true;
	in_flight = 0;
	/* indices wrap */
	producer = -20;
	spin_lock_init(&own->lock);
	if (pviommu_table_init(&own->table, 39, &pages))
		abort();
	return own;
}

int domain_delete(struct pviommu_domain *own)
{
	pviommu_pending_collect(own, 0, U64_MAX);
	pviommu_table_free(&own->table);
	free(own);
	return atomic_read(&pages);
}

void device_sends(bool can)
{
	sends = can;
}

/* Maps that the device still had when the last outcome was taken. */
u32 device_behind(void)
{
	return behind;
}

u32 device_in_flight(void)
{
	return in_flight;
}

/* A map of @task whose outcome the caller decides; as the driver, one that has to be waited for is. */
int domain_map(struct pviommu_domain *own, int task, u64 dfn, u64 gfn, u32 nr_pages, int error,
	       u32 mapped, bool *waited)
{
	struct pviommu_answer answer;
	int ret;

	current = &tasks[task];
	next = (struct pviommu_answer){ .error = error, .mapped = mapped };
	ret = pviommu_pending_map(own, dfn, gfn, nr_pages, 0, GFP_KERNEL);
	*waited = ret == -EAGAIN;
	if (!*waited)
		return ret;
	ret = pviommu_table_prepare(&own->table, dfn, nr_pages, GFP_KERNEL);
	if (ret || pviommu_op_map_send(own, &answer, dfn, gfn, nr_pages, 0))
		abort();
	ret = pviommu_op_map_wait(own, &answer, nr_pages, &mapped, PVIOMMU_WAIT_BUSY);
	pviommu_table_set(&own->table, dfn, mapped, PVIOMMU_ENTRY_MAPPED | gfn);
	return ret;
}

u64 domain_clear_run(struct pviommu_domain *own, u64 dfn, u64 nr_pages, u64 *kind)
{
	return pviommu_table_clear_run(&own->table, dfn, nr_pages, kind);
}
