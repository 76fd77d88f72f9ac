// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: what paging domains of both kinds have in common: each has its own context, to
 * which functions are attached. In one kind the device has the translations and the driver sends
 * maps and unmaps, see pviommu_domain.c; in the other the tables are the guest's and the device
 * walks them, see pviommu_guest_domain.c.
 */

#define pr_fmt(fmt) "pviommu: " fmt

#include <linux/dma-mapping.h>
#include <linux/error-injection.h>
#include <linux/mutex.h>
#include <uapi/linux/iommufd.h>

#include "pviommu.h"

static struct pviommu_paging *to_pviommu_paging(struct iommu_domain *domain)
{
	return container_of(domain, struct pviommu_paging, domain);
}

/*
 * On architectures where messages may be translated, Linux 7.3 (not yet 6.12) refuses interrupts to
 * a function whose domain has no cookie. VFIO's type1 gives a domain one only if messages are
 * translated, so the driver does it if they are not. The kernel then maps pages of interrupt
 * controllers from an address on that it is told here. It is told the page of the controller that
 * has the interrupts of the PV-IOMMU's function, so that nothing is moved by it. Domains of the DMA
 * API and of iommufd have cookies of their own.
 */
static int pviommu_paging_allow_msi(struct pviommu_paging *own)
{
	static DEFINE_MUTEX(lock);
	int ret;

	if (!IS_ENABLED(CONFIG_IRQ_MSI_IOMMU) || own->domain.type != IOMMU_DOMAIN_UNMANAGED)
		return 0;
	/* functions of several groups may be attached at the same time */
	mutex_lock(&lock);
	ret = iommu_get_msi_cookie(&own->domain, own->pv->msi_page);
	mutex_unlock(&lock);
	return ret == -ENOMEM ? ret : 0;
}

/**
 * pviommu_paging_map_msi - maps the page of an interrupt controller, for PVIOMMU_PROT_MSI
 * @iova: the device address
 * @paddr: the page
 * @size: in bytes
 * @mapped: is increased by what was mapped, in bytes
 *
 * Messages go to the address in the MSI-X table, untranslated. So there is nothing to map, and
 * another address than the page's own would lose them. The kernel never unmaps these pages.
 *
 * Return: 0, or -EADDRNOTAVAIL for another address.
 */
int pviommu_paging_map_msi(unsigned long iova, phys_addr_t paddr, size_t size, size_t *mapped)
{
	if (iova != paddr) {
		pr_err_once("MSIs to %pa cannot go by %#lx: nothing translates them\n", &paddr,
			    iova);
		return -EADDRNOTAVAIL;
	}
	*mapped += size;
	return 0;
}

int pviommu_domain_attach(PVIOMMU_ATTACH_PARAMETERS)
{
	struct pviommu_endpoint *ep = dev_iommu_priv_get(dev);
	struct pviommu_paging *own = to_pviommu_paging(domain);
	int ret;

	if (own->pv != ep->pv)
		return -EINVAL;
	ret = pviommu_paging_allow_msi(own);
	if (ret)
		return ret;
	ret = pviommu_attach(ep, domain, own->ctx);
	/* the core goes back to the domain of the DMA API where it does not handle an error */
	if (ret && pviommu_given_up(ep->pv) && pviommu_paging_is_dma(own))
		return pviommu_attach_given_up(ep, domain);
	return ret;
}
ALLOW_ERROR_INJECTION(pviommu_domain_attach, ERRNO);

/**
 * pviommu_paging_begin - makes a domain, which has a context, ready for the IOMMU core
 * @own: the domain
 * @pv: its PV-IOMMU
 * @ops: its operations
 * @page_sizes: bit mask of the sizes that are mapped at once
 * @bits: bits of a device address
 */
void pviommu_paging_begin(struct pviommu_paging *own, struct pviommu *pv,
			  const struct iommu_domain_ops *ops, unsigned long page_sizes,
			  unsigned int bits)
{
	own->pv = pv;
	own->domain.ops = ops;
	own->domain.pgsize_bitmap = page_sizes;
	own->domain.geometry.aperture_start = 0;
	own->domain.geometry.aperture_end = DMA_BIT_MASK(bits);
	own->domain.geometry.force_aperture = true;
	atomic_inc(&pv->nr_domains);
	refcount_inc(&pv->users);
}

/* Frees the context of a domain: 0, or -errno when the device may still use it. */
int pviommu_paging_free_context(struct pviommu_paging *own)
{
	int ret;

	pviommu_forget_domain(own->pv, &own->domain);
	ret = pviommu_op_free_context(own->pv, own->ctx);
	if (ret && !pviommu_given_up(own->pv))
		dev_err(pviommu_dev(own->pv), "free of context %u failed: %pe\n", own->ctx,
			ERR_PTR(ret));
	return ret;
}

/* Ends what pviommu_paging_begin() began. The PV-IOMMU may be gone afterwards. */
void pviommu_paging_end(struct pviommu_paging *own)
{
	atomic_dec(&own->pv->nr_domains);
	pviommu_put(own->pv);
}

/* No context for a domain: a line in the log unless the caller is told enough by the errno. */
void pviommu_paging_no_context(struct pviommu *pv, int error)
{
	if (error != -ENOSPC && error != -ENOMEM && error != -EOPNOTSUPP && !pviommu_given_up(pv))
		dev_err(pviommu_dev(pv), "no context for a domain: %pe\n", ERR_PTR(error));
}

/* For all users; those of iommufd choose more than the kernel does. */
struct iommu_domain *pviommu_domain_alloc_flags(PVIOMMU_ALLOC_PARAMETERS)
{
	struct pviommu_endpoint *ep = dev_iommu_priv_get(dev);
	bool dirty = flags & IOMMU_HWPT_ALLOC_DIRTY_TRACKING;
	struct iommu_domain *domain;

	if (flags & ~IOMMU_HWPT_ALLOC_DIRTY_TRACKING || user_data || (dirty && !ep->pv->has_tables))
		return ERR_PTR(-EOPNOTSUPP);
	domain = ep->pv->has_tables ? pviommu_guest_domain_alloc(ep->pv, dirty) :
				      pviommu_ring_domain_alloc(ep->pv);
	/* for iommufd; the core sets it anew */
	if (!IS_ERR(domain))
		domain->type = IOMMU_DOMAIN_UNMANAGED;
	return domain;
}

struct iommu_domain *pviommu_domain_alloc_paging(struct device *dev)
{
#ifdef PVIOMMU_ALLOC_HAS_PARENT
	return pviommu_domain_alloc_flags(dev, 0, NULL, NULL);
#else
	return pviommu_domain_alloc_flags(dev, 0, NULL);
#endif
}
