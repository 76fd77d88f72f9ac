// SPDX-License-Identifier: GPL-2.0-only
/*
 * Puts the virtual SMMUv3, a PCI function, into the device tree, so that arm-smmu-v3 finds it.
 *
 * The kernel's driver knows SMMUs that the firmware names: by a node with registers and interrupts,
 * and a map from PCI functions to StreamIDs at the host bridge. Neither can be in the tree that the
 * machine starts with, since nobody knows where the BAR will be. Once it has its address, this
 * module adds both, and the kernel does the rest: it makes a platform device of the node, which the
 * driver probes.
 *
 *   endpoints=0000:00:13.0=0x8,...   the functions behind the SMMU, with their StreamIDs
 *
 * They must not be there when the module is loaded, as none may have begun without its IOMMU:
 * remove them before, and rescan the bus afterwards (/sys/bus/pci/.../remove, /sys/bus/pci/rescan);
 * and remove them before the module is unloaded.
 *
 * ATS: the bridge is said to support it, so the driver turns it on for functions that have it.
 *
 * Interrupts: the driver wants wires. They come from an interrupt controller of this module's,
 * which hands on what arrives by MSI-X.
 *
 * MSIs of the endpoints: hardware writes them through the SMMU, so the driver has Linux map the
 * interrupt controller's page for each function. Here QEMU writes them, which knows nothing of this
 * SMMU, and they come out where they were addressed to. So the endpoints get that page as a region
 * of the hardware's own (IOMMU_RESV_MSI), which is not translated. VFIO's type1 then takes it that
 * the domain needs no cookie for messages, while Linux 7 refuses interrupts to a function whose
 * domain has none; so a domain gets one as it is attached, by which the page keeps its address. Of
 * the driver, these two things are changed, in copies of its operations.
 */

#define pr_fmt(fmt) "pviommu_smmu_dt: " fmt

#include <linux/device.h>
#include <linux/interrupt.h>
#include <linux/iommu.h>
#include <linux/irq.h>
#include <linux/irqdomain.h>
#include <linux/module.h>
#include <linux/msi.h>
#include <linux/mutex.h>
#include <linux/of.h>
#include <linux/of_address.h>
#include <linux/of_platform.h>
#include <linux/pci.h>
#include <linux/platform_device.h>
#include <linux/slab.h>

#define SMMU_VENDOR	0x1234
#define SMMU_DEVICE	0x505a
#define SMMU_BAR	0
#define SMMU_FRAME	0x20000
#define MAX_ENDPOINTS	64
/* far from those that a compiler of device trees gives */
#define FIRST_PHANDLE	0x50560000

/* in the order of the function's vectors; the third, of CMD_SYNC, and that of PRI have no users */
static const char * const smmu_lines[] = { "eventq", "gerror" };

#define LINES	ARRAY_SIZE(smmu_lines)

static char *endpoints[MAX_ENDPOINTS];
static unsigned int nr_endpoints;
module_param_array(endpoints, charp, &nr_endpoints, 0444);
MODULE_PARM_DESC(endpoints, "functions behind the SMMU with their StreamIDs, as 0000:00:13.0=0x8");

/**
 * struct smmu_line - one interrupt of the SMMU
 * @smmu: whose
 * @number: its number, and that of the MSI-X vector
 */
struct smmu_line {
	struct smmu_dt *smmu;
	unsigned int number;
};

/**
 * struct smmu_dt - one SMMU in the device tree
 * @pdev: its PCI function
 * @bridge: the node of the host bridge
 * @changes: what was added to the tree
 * @node: the SMMU's node
 * @controller: the node of its interrupt controller, below it
 * @domain: that controller
 * @lines: its interrupts
 * @requested: how many of them are requested
 * @iommu: the SMMU as the IOMMU core knows it
 * @original: the driver's operations
 * @ops: the same with other reserved regions, and domains whose operations are @domain_ops
 * @domain_ops: those of the driver's paging domains with another attach_dev()
 * @cookies: held while a domain gets its cookie
 * @doorbell: the frame of the interrupt controller, which has the page where MSIs are written to
 * @msi_page: that page
 */
struct smmu_dt {
	struct pci_dev *pdev;
	struct device_node *bridge;
	struct of_changeset changes;
	struct device_node *node;
	struct device_node *controller;
	struct irq_domain *domain;
	struct smmu_line lines[LINES];
	unsigned int requested;
	struct iommu_device *iommu;
	const struct iommu_ops *original;
	struct iommu_ops ops;
	struct iommu_domain_ops domain_ops;
	struct mutex cookies;	/* held while a domain gets its cookie */
	struct resource doorbell;
	u64 msi_page;
};

#if IS_ENABLED(CONFIG_OF_DYNAMIC)

/* interrupts */

static int smmu_irq_map(struct irq_domain *domain, unsigned int virq, irq_hw_number_t line)
{
	irq_set_chip_and_handler(virq, &dummy_irq_chip, handle_simple_irq);
	return 0;
}

static const struct irq_domain_ops smmu_irq_ops = {
	.map = smmu_irq_map,
	.xlate = irq_domain_xlate_onecell,
};

static irqreturn_t smmu_interrupt(int irq, void *data)
{
	struct smmu_line *line = data;

	generic_handle_domain_irq(line->smmu->domain, line->number);
	return IRQ_HANDLED;
}

static void smmu_free_irqs(struct smmu_dt *smmu)
{
	while (smmu->requested) {
		smmu->requested--;
		free_irq(pci_irq_vector(smmu->pdev, smmu->requested),
			 &smmu->lines[smmu->requested]);
	}
	pci_free_irq_vectors(smmu->pdev);
}

static int smmu_request_irqs(struct smmu_dt *smmu)
{
	int ret = pci_alloc_irq_vectors(smmu->pdev, LINES, LINES, PCI_IRQ_MSIX);
	struct msi_msg msg = {};
	unsigned int i;

	if (ret < 0)
		return ret;
	for (i = 0; i < LINES; i++) {
		smmu->lines[i] = (struct smmu_line){ smmu, i };
		ret = request_irq(pci_irq_vector(smmu->pdev, i), smmu_interrupt, 0, smmu_lines[i],
				  &smmu->lines[i]);
		if (ret) {
			smmu_free_irqs(smmu);
			return ret;
		}
		smmu->requested++;
	}
	/* those of the endpoints go to the same page */
	get_cached_msi_msg(pci_irq_vector(smmu->pdev, 0), &msg);
	smmu->msi_page = ((u64)msg.address_hi << 32 | msg.address_lo) & PAGE_MASK;
	return 0;
}

static void smmu_remove_domain(struct smmu_dt *smmu)
{
	unsigned int i, virq;

	for (i = 0; i < LINES; i++) {
		virq = irq_find_mapping(smmu->domain, i);
		if (virq)
			irq_dispose_mapping(virq);
	}
	irq_domain_remove(smmu->domain);
}

/* the device tree */

/* A property as the tree frees it. @value may be NULL, with a @length of 0. */
static struct property *smmu_property(const char *name, const void *value, int length)
{
	struct property *property = kzalloc(sizeof(*property), GFP_KERNEL);

	if (!property)
		return NULL;
	property->name = kstrdup(name, GFP_KERNEL);
	property->value = kmemdup(value, length, GFP_KERNEL);
	property->length = length;
	if (property->name && property->value)
		return property;
	kfree(property->name);
	kfree(property->value);
	kfree(property);
	return NULL;
}

/* A property without a value. */
static int smmu_add_flag(struct smmu_dt *smmu, struct device_node *node, const char *name)
{
	struct property *property = smmu_property(name, NULL, 0);

	return property ? of_changeset_add_property(&smmu->changes, node, property) : -ENOMEM;
}

static int smmu_add_cells(struct smmu_dt *smmu, struct device_node *node, const char *name,
			  const u32 *cells, size_t count)
{
	return of_changeset_add_prop_u32_array(&smmu->changes, node, name, cells, count);
}

/*
 * The number by which others refer to the node, the first from @handle on that none has. The node
 * must have it when it comes into the tree, so this is no part of the changes.
 */
static int smmu_add_phandle(struct device_node *node, phandle handle)
{
	struct property *property;
	struct device_node *other;
	__be32 value;

	while ((other = of_find_node_by_phandle(handle))) {
		of_node_put(other);
		handle++;
	}
	node->phandle = handle;
	value = cpu_to_be32(handle);
	property = smmu_property("phandle", &value, sizeof(value));
	return property ? of_add_property(node, property) : -ENOMEM;
}

static int smmu_describe_controller(struct smmu_dt *smmu)
{
	static const u32 one = 1;
	int ret;

	smmu->controller = of_changeset_create_node(&smmu->changes, smmu->node,
						    "interrupt-controller");
	if (!smmu->controller)
		return -ENOMEM;
	ret = smmu_add_phandle(smmu->controller, FIRST_PHANDLE);
	if (!ret)
		ret = smmu_add_cells(smmu, smmu->controller, "#interrupt-cells", &one, 1);
	return ret ?: smmu_add_flag(smmu, smmu->controller, "interrupt-controller");
}

static int smmu_describe(struct smmu_dt *smmu)
{
	static const u32 one = 1, lines[LINES] = { 0, 1 };
	u64 base = pci_resource_start(smmu->pdev, SMMU_BAR);
	u32 reg[] = { upper_32_bits(base), lower_32_bits(base), 0, SMMU_FRAME };
	char name[32];
	int ret;

	snprintf(name, sizeof(name), "iommu@%llx", base);
	smmu->node = of_changeset_create_node(&smmu->changes, of_root, name);
	if (!smmu->node)
		return -ENOMEM;
	ret = smmu_describe_controller(smmu);
	if (!ret)
		ret = smmu_add_phandle(smmu->node, smmu->controller->phandle + 1);
	if (!ret)
		ret = of_changeset_add_prop_string(&smmu->changes, smmu->node, "compatible",
						   "arm,smmu-v3");
	if (!ret)
		ret = smmu_add_cells(smmu, smmu->node, "reg", reg, ARRAY_SIZE(reg));
	if (!ret)
		ret = smmu_add_cells(smmu, smmu->node, "#iommu-cells", &one, 1);
	if (!ret)
		ret = smmu_add_cells(smmu, smmu->node, "interrupt-parent",
				     &smmu->controller->phandle, 1);
	if (!ret)
		ret = smmu_add_cells(smmu, smmu->node, "interrupts", lines, LINES);
	if (!ret)
		ret = of_changeset_add_prop_string_array(&smmu->changes, smmu->node,
							 "interrupt-names",
							 (const char **)smmu_lines, LINES);
	return ret ?: smmu_add_flag(smmu, smmu->node, "dma-coherent");
}

/* @text: as in the parameter; @rid: bus, device and function. */
static int smmu_parse_endpoint(struct smmu_dt *smmu, const char *text, u32 *rid, u32 *sid)
{
	unsigned int segment, bus, slot, function;
	struct pci_dev *present;
	int end = 0;

	if (sscanf(text, "%x:%x:%x.%u=%i%n", &segment, &bus, &slot, &function, sid, &end) != 5 ||
	    text[end] || bus > 0xff || slot > 0x1f || function > 7) {
		pci_err(smmu->pdev, "endpoints=%s: must be as 0000:00:13.0=0x8\n", text);
		return -EINVAL;
	}
	if (segment != pci_domain_nr(smmu->pdev->bus)) {
		pci_err(smmu->pdev, "endpoints=%s: must be in segment %04x, as the SMMU is\n", text,
			pci_domain_nr(smmu->pdev->bus));
		return -EINVAL;
	}
	present = pci_get_domain_bus_and_slot(segment, bus, PCI_DEVFN(slot, function));
	if (present) {
		pci_err(smmu->pdev, "endpoints=%s: is there already, remove it first\n", text);
		pci_dev_put(present);
		return -EBUSY;
	}
	*rid = PCI_DEVID(bus, PCI_DEVFN(slot, function));
	return 0;
}

static int smmu_describe_endpoints(struct smmu_dt *smmu)
{
	u32 *map = kcalloc(nr_endpoints, 4 * sizeof(*map), GFP_KERNEL), *entry = map;
	unsigned int i;
	int ret = 0;

	if (!map)
		return -ENOMEM;
	for (i = 0; i < nr_endpoints && !ret; i++, entry += 4) {
		ret = smmu_parse_endpoint(smmu, endpoints[i], &entry[0], &entry[2]);
		entry[1] = smmu->node->phandle;
		entry[3] = 1;
	}
	if (!ret)
		ret = smmu_add_cells(smmu, smmu->bridge, "iommu-map", map, 4 * nr_endpoints);
	if (!ret)
		ret = smmu_add_flag(smmu, smmu->bridge, "ats-supported");
	kfree(map);
	return ret;
}

/* Where the tree sends MSIs of PCI functions: msi-map is { first function, controller, ... }. */
static int smmu_find_doorbell(struct smmu_dt *smmu)
{
	struct device_node *controller;
	u32 handle;
	int ret = of_property_read_u32_index(smmu->bridge, "msi-map", 1, &handle);

	if (ret)
		return ret;
	controller = of_find_node_by_phandle(handle);
	ret = controller ? of_address_to_resource(controller, 0, &smmu->doorbell) : -ENODEV;
	of_node_put(controller);
	return ret;
}

/* reserved regions of the endpoints */

static void smmu_get_resv_regions(struct device *dev, struct list_head *head)
{
	struct smmu_dt *smmu = container_of(dev->iommu->iommu_dev->ops, struct smmu_dt, ops);
	struct iommu_resv_region *region;

	smmu->original->get_resv_regions(dev, head);
	list_for_each_entry(region, head, list) {
		if (region->type != IOMMU_RESV_SW_MSI)
			continue;
		region->start = smmu->doorbell.start;
		region->length = resource_size(&smmu->doorbell);
		region->type = IOMMU_RESV_MSI;
	}
}

/* domains of the endpoints */

#ifdef SMMU_DOMAINS_NEED_COOKIES

/*
 * Domains of the DMA API and of iommufd have cookies of their own. The kernel maps the page of the
 * interrupt controller from the address on that it is told here, so to itself: the guest's tables
 * lead there, where no DMA comes to anything.
 */
static int smmu_attach_dev(struct iommu_domain *domain, struct device *dev,
			   struct iommu_domain *old)
{
	struct smmu_dt *smmu = container_of(domain->ops, struct smmu_dt, domain_ops);
	int ret = 0;

	if (domain->type == IOMMU_DOMAIN_UNMANAGED) {
		/* functions of several groups may be attached at the same time */
		mutex_lock(&smmu->cookies);
		ret = iommu_get_msi_cookie(domain, smmu->msi_page);
		mutex_unlock(&smmu->cookies);
	}
	if (ret == -ENOMEM)
		return ret;
	return smmu->original->default_domain_ops->attach_dev(domain, dev, old);
}

static struct iommu_domain *smmu_alloc_domain(struct device *dev, u32 flags,
					      const struct iommu_user_data *data)
{
	struct smmu_dt *smmu = container_of(dev->iommu->iommu_dev->ops, struct smmu_dt, ops);
	struct iommu_domain *domain = smmu->original->domain_alloc_paging_flags(dev, flags, data);

	if (!IS_ERR(domain) && domain->ops == smmu->original->default_domain_ops)
		domain->ops = &smmu->domain_ops;
	return domain;
}

static void smmu_take_domains(struct smmu_dt *smmu)
{
	mutex_init(&smmu->cookies);
	smmu->domain_ops = *smmu->original->default_domain_ops;
	smmu->domain_ops.attach_dev = smmu_attach_dev;
	smmu->ops.domain_alloc_paging_flags = smmu_alloc_domain;
}

#else

static void smmu_take_domains(struct smmu_dt *smmu)
{
}

#endif

/* A child of the SMMU's device; the one of this class stands for it in the IOMMU core. */
static int smmu_note_iommu(struct device *dev, void *data)
{
	struct smmu_dt *smmu = data;

	if (dev->class && !strcmp(dev->class->name, "iommu"))
		smmu->iommu = dev_get_drvdata(dev);
	return 0;
}

/* The driver has probed, and there is no endpoint yet. */
static int smmu_take_ops(struct smmu_dt *smmu)
{
	struct platform_device *device = of_find_device_by_node(smmu->node);

	if (!device)
		return -ENODEV;
	device_for_each_child(&device->dev, smmu, smmu_note_iommu);
	put_device(&device->dev);
	if (!smmu->iommu)
		return -ENODEV;
	smmu->original = smmu->iommu->ops;
	smmu->ops = *smmu->original;
	smmu->ops.get_resv_regions = smmu_get_resv_regions;
	smmu_take_domains(smmu);
	smmu->iommu->ops = &smmu->ops;
	return 0;
}

/* the PCI function */

static void smmu_revert(struct smmu_dt *smmu)
{
	if (smmu->iommu)
		smmu->iommu->ops = smmu->original;
	of_changeset_revert(&smmu->changes);
}

static int smmu_add(struct smmu_dt *smmu)
{
	int ret = smmu_find_doorbell(smmu);

	if (!ret)
		ret = smmu_describe(smmu);
	if (!ret)
		ret = smmu_describe_endpoints(smmu);
	if (ret)
		return ret;
	smmu->domain = irq_domain_create_linear(of_fwnode_handle(smmu->controller), LINES,
						&smmu_irq_ops, smmu);
	if (!smmu->domain)
		return -ENOMEM;
	ret = smmu_request_irqs(smmu);
	if (ret)
		goto err_domain;
	ret = of_changeset_apply(&smmu->changes);
	if (ret)
		goto err_irqs;
	ret = smmu_take_ops(smmu);
	if (ret) {
		pci_err(smmu->pdev, "arm-smmu-v3 has not probed %pOF\n", smmu->node);
		goto err_tree;
	}
	return 0;

err_tree:
	smmu_revert(smmu);
err_irqs:
	smmu_free_irqs(smmu);
err_domain:
	smmu_remove_domain(smmu);
	return ret;
}

static int smmu_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct device *bridge = pci_find_host_bridge(pdev->bus)->dev.parent;
	struct smmu_dt *smmu;
	int ret;

	if (!bridge || !bridge->of_node) {
		pci_err(pdev, "the host bridge is not in a device tree\n");
		return -ENODEV;
	}
	if (of_find_property(bridge->of_node, "iommu-map", NULL)) {
		pci_err(pdev, "the host bridge has an iommu-map already\n");
		return -EEXIST;
	}
	if (!nr_endpoints) {
		pci_err(pdev, "endpoints= is not given\n");
		return -EINVAL;
	}
	if (pci_resource_len(pdev, SMMU_BAR) < SMMU_FRAME)
		return -ENODEV;
	smmu = kzalloc(sizeof(*smmu), GFP_KERNEL);
	if (!smmu)
		return -ENOMEM;
	smmu->pdev = pdev;
	smmu->bridge = bridge->of_node;
	of_changeset_init(&smmu->changes);
	ret = pci_enable_device_mem(pdev);
	if (ret)
		goto err_free;
	pci_set_master(pdev);
	ret = smmu_add(smmu);
	if (ret)
		goto err_disable;
	pci_set_drvdata(pdev, smmu);
	return 0;

err_disable:
	pci_clear_master(pdev);
	pci_disable_device(pdev);
err_free:
	of_changeset_destroy(&smmu->changes);
	kfree(smmu);
	return ret;
}

static void smmu_remove(struct pci_dev *pdev)
{
	struct smmu_dt *smmu = pci_get_drvdata(pdev);

	smmu_revert(smmu);
	smmu_free_irqs(smmu);
	smmu_remove_domain(smmu);
	pci_clear_master(pdev);
	pci_disable_device(pdev);
	of_changeset_destroy(&smmu->changes);
	kfree(smmu);
}

#else

static int smmu_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	pci_err(pdev, "the device tree of this kernel cannot change, it lacks CONFIG_OF_DYNAMIC\n");
	return -EOPNOTSUPP;
}

static void smmu_remove(struct pci_dev *pdev)
{
}

#endif

static const struct pci_device_id smmu_ids[] = {
	{ PCI_DEVICE(SMMU_VENDOR, SMMU_DEVICE) },
	{}
};

static struct pci_driver smmu_driver = {
	.name = KBUILD_MODNAME,
	.id_table = smmu_ids,
	.probe = smmu_probe,
	.remove = smmu_remove,
};
module_pci_driver(smmu_driver);

MODULE_DESCRIPTION("Puts a virtual SMMUv3 on the PCI bus into the device tree");
MODULE_LICENSE("GPL");
