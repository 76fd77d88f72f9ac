/* SPDX-License-Identifier: GPL-2.0-only */
/* Paravirtual IOMMU: maps that were sent and whose outcome was not taken yet. */
#ifndef _PVIOMMU_PENDING_H
#define _PVIOMMU_PENDING_H

#include <linux/types.h>

#define PVIOMMU_PENDING_MAPS	16

struct pviommu_domain;
struct task_struct;

/**
 * struct pviommu_pending - a map whose outcome was not taken yet
 * @state: free; sent; being sent or having its outcome taken; or failed, when the outcome
 *	was taken to make room and @error is to be returned later
 * @answer: the command
 * @owner: the task that sent it, only for comparison
 * @dfn: first page
 * @gfn: first frame
 * @nr_pages: how many
 * @error: why it failed
 */
struct pviommu_pending {
	enum {
		PVIOMMU_PENDING_FREE,
		PVIOMMU_PENDING_SENT,
		PVIOMMU_PENDING_TAKING,
		PVIOMMU_PENDING_FAILED,
	} state;
	struct pviommu_answer answer;
	const struct task_struct *owner;
	u64 dfn;
	u64 gfn;
	u32 nr_pages;
	int error;
};

int pviommu_pending_map(struct pviommu_domain *own, u64 dfn, u64 gfn, u32 nr_pages, u32 flags,
			gfp_t gfp);
int pviommu_pending_collect(struct pviommu_domain *own, u64 dfn, u64 nr_pages);

#endif /* _PVIOMMU_PENDING_H */
