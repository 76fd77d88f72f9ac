// SPDX-License-Identifier: MIT
/*
 * The DMA test engine for libvfio, the library of the kernel's own tests of VFIO
 * (tools/testing/selftests/vfio): what vfio_pci_driver_test needs of a device.
 *
 * libvfio has a table of its drivers. This one is tried before them by --wrap=vfio_pci_driver_probe
 * at link time, so that the kernel's sources stay unchanged.
 */
#include <errno.h>
#include <unistd.h>

#include <linux/io.h>
#include <linux/kernel.h>
#include <linux/types.h>

#include <libvfio.h>

#include "libvfio_wrap.h"
#include "pviommu_dma_test.h"

#define POLL_US		50

/*
 * State of the driver, at the beginning of its region.
 * @producer: descriptors submitted since the last reset
 * @first: the first one of the operation in progress
 * @src, @dst: of the copy that ends with an interrupt
 */
struct engine_state {
	u32 producer;
	u32 first;
	u64 src;
	u64 dst;
};

static struct engine_state *state_of(struct vfio_pci_device *device)
{
	return device->driver.region.vaddr;
}

/* Where registers are not mapped, as without a kernel, they are accessed by system calls. */
static u32 get(struct vfio_pci_device *device, u32 reg)
{
	struct vfio_pci_bar *bar = &device->bars[PVDT_REGISTER_BAR];
	u64 offset = bar->info.offset + reg;
	u32 value;

	if (bar->vaddr)
		return readl(bar->vaddr + reg);
	VFIO_ASSERT_EQ(pread(device->fd, &value, sizeof(value), offset), sizeof(value));
	return value;
}

static void set(struct vfio_pci_device *device, u32 reg, u32 value)
{
	struct vfio_pci_bar *bar = &device->bars[PVDT_REGISTER_BAR];
	u64 offset = bar->info.offset + reg;

	if (bar->vaddr)
		writel(value, bar->vaddr + reg);
	else
		VFIO_ASSERT_EQ(pwrite(device->fd, &value, sizeof(value), offset), sizeof(value));
}

static struct pvdt_descriptor *descriptor_of(struct vfio_pci_device *device, u32 number)
{
	struct pvdt_descriptor *queue = device->bars[PVDT_SHARED_BAR].vaddr;

	return &queue[number % PVDT_ENTRIES];
}

static int engine_probe(struct vfio_pci_device *device)
{
	if (!vfio_pci_device_match(device, PVDT_VENDOR_ID, PVDT_DEVICE_ID))
		return -ENODEV;

	VFIO_ASSERT_NOT_NULL(device->bars[PVDT_SHARED_BAR].vaddr);
	VFIO_ASSERT_EQ(get(device, PVDT_REG_MAGIC), PVDT_MAGIC);
	VFIO_ASSERT_EQ(get(device, PVDT_REG_VERSION), PVDT_VERSION);

	return 0;
}

static void engine_init(struct vfio_pci_device *device)
{
	VFIO_ASSERT_GE(device->driver.region.size, sizeof(struct engine_state));

	/* A function-level reset: nothing of the engine's earlier user is left. */
	vfio_pci_device_reset(device);
	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
	set(device, PVDT_REG_CONTROL, PVDT_CONTROL_ENABLE);
	*state_of(device) = (struct engine_state){};

	vfio_pci_msix_enable(device, 0, device->msix_info.count);
	device->driver.msi = 0;
	device->driver.max_memcpy_size = get(device, PVDT_REG_MAX_LENGTH);
	device->driver.max_memcpy_count = get(device, PVDT_REG_ENTRIES);
}

static void engine_remove(struct vfio_pci_device *device)
{
	set(device, PVDT_REG_CONTROL, PVDT_CONTROL_RESET);
	vfio_pci_msix_disable(device);
}

static void start(struct vfio_pci_device *device, iova_t src, iova_t dst, u64 size, u64 count,
		  u8 flags)
{
	struct engine_state *state = state_of(device);

	state->first = state->producer;
	for (; count; count--) {
		*descriptor_of(device, state->producer++) = (struct pvdt_descriptor){
			.op = PVDT_OP_COPY,
			.flags = flags,
			.length = size,
			.src = src,
			.dst = dst,
			.status = PVDT_STATUS_PENDING,
		};
	}
	set(device, PVDT_REG_PRODUCER, state->producer);
}

static void engine_memcpy_start(struct vfio_pci_device *device, iova_t src, iova_t dst, u64 size,
				u64 count)
{
	start(device, src, dst, size, count, 0);
}

/* An engine goes on after a refused descriptor, so all of them end. */
static int engine_memcpy_wait(struct vfio_pci_device *device)
{
	struct engine_state *state = state_of(device);
	int result = 0;
	u32 number;

	while (get(device, PVDT_REG_CONSUMER) != state->producer)
		usleep(POLL_US);

	for (number = state->first; number != state->producer; number++) {
		if (descriptor_of(device, number)->status != PVDT_STATUS_DONE)
			result = -EIO;
	}
	return result;
}

static void engine_send_msi(struct vfio_pci_device *device)
{
	struct engine_state *state = state_of(device);

	start(device, to_iova(device, &state->src), to_iova(device, &state->dst),
	      sizeof(state->src), 1, PVDT_FLAG_INTERRUPT);
	VFIO_ASSERT_EQ(engine_memcpy_wait(device), 0);
}

static const struct vfio_pci_driver_ops engine_ops = {
	.name = "pviommu_dma_test",
	.probe = engine_probe,
	.init = engine_init,
	.remove = engine_remove,
	.memcpy_start = engine_memcpy_start,
	.memcpy_wait = engine_memcpy_wait,
	.send_msi = engine_send_msi,
};

void __wrap_vfio_pci_driver_probe(struct vfio_pci_device *device)
{
	if (engine_ops.probe(device) == 0)
		device->driver.ops = &engine_ops;
	else
		__real_vfio_pci_driver_probe(device);
}
