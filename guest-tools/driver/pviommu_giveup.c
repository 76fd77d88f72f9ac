// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: giving up a device that does not answer.
 *
 * Whoever unmapped something cannot be told that it failed, and will use the memory again. So the
 * DMA of all functions behind the device has to end, and that is what a reset does: it blocks every
 * function that was outside context 0, whatever resets that function afterwards. It is a write to a
 * trapped register, which may take seconds and sleeps in no way, but is not for a caller with
 * interrupts off; hence the work. Until it is done unmaps are still sent: a device that goes on
 * works its rings off before any DMA.
 *
 * Afterwards a function that was outside context 0 can be in two domains: the blocked one, which is
 * the truth, and that of the DMA API, in which nothing can be mapped any more. The core must be
 * able to attach these, and all other attaches fail. The device works again when the driver is
 * unbound from it and bound again.
 */

#define pr_fmt(fmt) "pviommu: " fmt

#include <linux/io.h>

#include "pviommu.h"

/* Resets the device, as PVIOMMU_RESET_* says, and sees whether it did; then all DMA is over. */
bool pviommu_reset(struct pviommu *pv, u32 how)
{
	u32 selected;

	writel(how, pv->regs + PVIOMMU_REG_RESET);
	selected = readl(pv->regs + PVIOMMU_REG_PROFILE);
	if (selected == PVIOMMU_PROFILE_NONE)
		WRITE_ONCE(pv->reset, true);
	/*
	 * All ones: the hypervisor has closed the function, which resets it as well, but not before
	 * the device goes on. Unmaps are still sent until then.
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

/* Nothing that the device may still write to is ever used again. Whether this call did it. */
bool pviommu_give_up(struct pviommu *pv)
{
	if (xchg(&pv->given_up, true))
		return false;
	schedule_work(&pv->reset_work);
	pviommu_rings_wake(pv);
	return true;
}

/* Waits for the reset that giving up began, if it did. */
void pviommu_give_up_finish(struct pviommu *pv)
{
	flush_work(&pv->reset_work);
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
	int ret = -ENODEV;

	/* who gives it up may not have got as far as this */
	schedule_work(&pv->reset_work);
	pviommu_give_up_finish(pv);
	mutex_lock(&pv->lock);
	if (pviommu_is_reset(pv) && ep->confined) {
		ep->domain = domain;
		ret = 0;
	}
	mutex_unlock(&pv->lock);
	if (ret)
		dev_err(ep->dev, "may still do DMA to all memory: the IOMMU does not answer\n");
	return ret;
}
