// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: giving up a device that does not answer.
 *
 * An unmap cannot report that it failed, and its memory will be used again. So the DMA of all
 * functions behind the device has to end. A reset does that: it blocks every function that was
 * outside context 0, whatever resets that function afterwards. It is a write to a trapped register,
 * which does not sleep but may take seconds, too long with interrupts off; hence the work item.
 * Until it is done unmaps are still sent: a device that resumes drains its rings before any DMA.
 *
 * Afterwards a function that was outside context 0 can be attached to two domains only: the blocked
 * one, which matches its state, and that of the DMA API, in which nothing can be mapped any more.
 * The core relies on being able to attach these; all other attaches fail. The device works again
 * when the driver is unbound from it and bound again.
 */

#define pr_fmt(fmt) "pviommu: " fmt

#include <linux/io.h>

#include "pviommu.h"

/* Resets the device by one of PVIOMMU_RESET_*; whether that succeeded, and so all DMA has ended. */
bool pviommu_reset(struct pviommu *pv, u32 how)
{
	u32 selected;

	writel(how, pv->regs + PVIOMMU_REG_RESET);
	selected = readl(pv->regs + PVIOMMU_REG_PROFILE);
	if (selected == PVIOMMU_PROFILE_NONE)
		WRITE_ONCE(pv->reset, true);
	/*
	 * All ones: the hypervisor has closed the function, which resets it as well, but only when
	 * the device resumes. Unmaps are still sent until then.
	 */
	else if (PCI_POSSIBLE_ERROR(selected))
		WRITE_ONCE(pv->closed, true);
	return pviommu_is_reset(pv);
}

static void pviommu_reset_work(struct work_struct *work)
{
	struct pviommu *pv = container_of(work, struct pviommu, reset_work);

	if (pviommu_is_reset(pv))
		return;
	if (pviommu_reset(pv, PVIOMMU_RESET_BLOCKED))
		dev_err(pviommu_dev(pv), "DMA behind it is stopped by a reset: bind the driver again to go on\n");
	else
		dev_crit(pviommu_dev(pv), "the reset is ignored: DMA may go on\n");
}

void pviommu_give_up_init(struct pviommu *pv)
{
	INIT_WORK(&pv->reset_work, pviommu_reset_work);
}

/*
 * Gives the device up: memory that it may still write to is never used again. Whether this call did
 * so.
 */
bool pviommu_give_up(struct pviommu *pv)
{
	if (xchg(&pv->given_up, true))
		return false;
	schedule_work(&pv->reset_work);
	pviommu_rings_wake(pv);
	return true;
}

/* Waits for the reset after the device was given up, if it was. */
void pviommu_give_up_finish(struct pviommu *pv)
{
	flush_work(&pv->reset_work);
}

/* Resets a device that was given up; whether nothing that it had is used by DMA any more. */
bool pviommu_has_ended(struct pviommu *pv)
{
	/* another CPU may be about to give it up */
	schedule_work(&pv->reset_work);
	pviommu_give_up_finish(pv);
	return pviommu_is_reset(pv);
}

/**
 * pviommu_attach_given_up - attaches a domain in which nothing can be mapped
 * @ep: the function
 * @domain: the blocked domain, or one of the DMA API
 *
 * Return: 0 when the function reaches nothing, else -ENODEV.
 */
int pviommu_attach_given_up(struct pviommu_endpoint *ep, struct iommu_domain *domain)
{
	struct pviommu *pv = ep->pv;
	bool ended = pviommu_has_ended(pv);
	int ret = -ENODEV;

	mutex_lock(&pv->lock);
	if (ended && ep->confined) {
		ep->domain = domain;
		ret = 0;
	}
	mutex_unlock(&pv->lock);
	if (ret)
		dev_err(ep->dev, "may still do DMA to all memory: the IOMMU does not answer\n");
	return ret;
}
