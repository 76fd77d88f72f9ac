// SPDX-License-Identifier: MIT
/*
 * pviommu_xor ADDRESS: drives an XOR endpoint of pviommu, a PCI function that is bound to vfio-pci.
 * An example of a driver in user space: it maps its own memory, and the device reaches that memory
 * at the addresses given here and nothing else.
 *
 * Exit status: 0 the device did what it should, 1 it did not, or the kernel refused, 2 wrong
 * arguments.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../driver/pviommu_xor.h"
#include "vfio_group.h"

#define PAGE_BYTES	4096ul
#define LENGTH		(4 * PAGE_BYTES)
/* Needs more than 32 bits; below the limit of every IOMMU. */
#define IOVA		(5ull << 30)
#define READ_ONLY_IOVA	(6ull << 30)
#define NOWHERE_IOVA	(7ull << 30)
#define PCI_COMMAND	4
/* Memory decoding and bus mastering. */
#define PCI_COMMAND_ON	6
#define WAIT_MS		5000

enum { FAILED = 1, USAGE = 2 };

struct function {
	int container;
	int device;
	int interrupt;		/* an eventfd */
	off_t registers;
};

static void fail(const char *what)
{
	fprintf(stderr, "pviommu_xor: %s: %s\n", what, strerror(errno));
	exit(FAILED);
}

static void check(int holds, const char *what)
{
	printf("%s %s\n", holds ? "ok  " : "FAIL", what);
	if (!holds)
		exit(FAILED);
}

static int open_group(const char *address)
{
	char path[PATH_MAX];
	int group = vfio_open_group(address, path);

	if (group < 0) {
		errno = -group;
		fail(path);
	}
	return group;
}

static off_t region(int device, unsigned int index)
{
	struct vfio_region_info info = { .argsz = sizeof(info), .index = index };

	if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info))
		fail("VFIO_DEVICE_GET_REGION_INFO");
	return info.offset;
}

static int set_up_interrupt(int device)
{
	char buffer[sizeof(struct vfio_irq_set) + sizeof(int)];
	struct vfio_irq_set *set = (struct vfio_irq_set *)buffer;
	int event = eventfd(0, EFD_CLOEXEC);

	*set = (struct vfio_irq_set){
		.argsz = sizeof(buffer),
		.flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
		.index = VFIO_PCI_MSIX_IRQ_INDEX,
		.count = 1,
	};
	memcpy(set->data, &event, sizeof(event));
	if (event < 0 || ioctl(device, VFIO_DEVICE_SET_IRQS, set))
		fail("VFIO_DEVICE_SET_IRQS");
	return event;
}

static struct function open_function(const char *address)
{
	uint16_t command = PCI_COMMAND_ON;
	struct function function;
	int group;
	off_t at;

	function.container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
	if (function.container < 0)
		fail("/dev/vfio/vfio");
	group = open_group(address);
	if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &function.container))
		fail("VFIO_GROUP_SET_CONTAINER");
	if (ioctl(function.container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
		fail("VFIO_SET_IOMMU");
	function.device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, address);
	if (function.device < 0)
		fail("VFIO_GROUP_GET_DEVICE_FD");
	function.registers = region(function.device,
				    VFIO_PCI_BAR0_REGION_INDEX + PVXOR_REGISTER_BAR);
	at = region(function.device, VFIO_PCI_CONFIG_REGION_INDEX) + PCI_COMMAND;
	if (pwrite(function.device, &command, sizeof(command), at) != sizeof(command))
		fail("bus mastering");
	function.interrupt = set_up_interrupt(function.device);
	return function;
}

static void map(const struct function *function, void *buffer, uint64_t iova, uint32_t access)
{
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = access,
		.vaddr = (uintptr_t)buffer,
		.iova = iova,
		.size = LENGTH,
	};

	if (ioctl(function->container, VFIO_IOMMU_MAP_DMA, &map))
		fail("VFIO_IOMMU_MAP_DMA");
}

static uint32_t get(const struct function *function, unsigned int offset)
{
	off_t at = function->registers + offset;
	uint32_t value;

	if (pread(function->device, &value, sizeof(value), at) != sizeof(value))
		fail("a register");
	return value;
}

static void set(const struct function *function, unsigned int offset, uint32_t value)
{
	off_t at = function->registers + offset;

	if (pwrite(function->device, &value, sizeof(value), at) != sizeof(value))
		fail("a register");
}

/* XORs LENGTH bytes at a device address; returns a value of STATUS. */
static uint32_t xored(const struct function *function, uint64_t iova)
{
	struct pollfd done = { .fd = function->interrupt, .events = POLLIN };
	uint64_t count;

	if (pwrite(function->device, &iova, sizeof(iova),
		   function->registers + PVXOR_REG_ADDRESS) != sizeof(iova))
		fail("a register");
	set(function, PVXOR_REG_LENGTH, LENGTH);
	set(function, PVXOR_REG_START, 1);
	if (poll(&done, 1, WAIT_MS) != 1 || read(done.fd, &count, sizeof(count)) != sizeof(count))
		return PVXOR_STATUS_BUSY;
	return get(function, PVXOR_REG_STATUS);
}

int main(int argc, char **argv)
{
	unsigned char *buffer, expected[LENGTH], before[LENGTH];
	struct function function;
	uint32_t key;
	size_t at;

	if (argc != 2) {
		fprintf(stderr, "usage: pviommu_xor ADDRESS\n");
		return USAGE;
	}
	function = open_function(argv[1]);
	buffer = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (buffer == MAP_FAILED)
		fail("mmap");
	key = get(&function, PVXOR_REG_KEY);
	printf("key %u\n", key);
	for (at = 0; at < LENGTH; at++) {
		before[at] = at * 7 + at / PAGE_BYTES;
		expected[at] = before[at] ^ key;
	}
	memcpy(buffer, before, LENGTH);
	map(&function, buffer, IOVA, VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE);
	map(&function, buffer, READ_ONLY_IOVA, VFIO_DMA_MAP_FLAG_READ);

	check(xored(&function, IOVA) == PVXOR_STATUS_DONE, "the device interrupts when it is done");
	check(!memcmp(buffer, expected, LENGTH), "every byte is XORed with the key");
	check(xored(&function, IOVA + 1) == PVXOR_STATUS_REFUSED,
	      "a buffer that ends outside is refused");
	check(xored(&function, READ_ONLY_IOVA) == PVXOR_STATUS_REFUSED,
	      "one that may only be read is refused");
	check(xored(&function, NOWHERE_IOVA) == PVXOR_STATUS_REFUSED,
	      "one that is not mapped is refused");
	check(!memcmp(buffer, expected, LENGTH), "and none of its bytes has changed");
	check(xored(&function, IOVA) == PVXOR_STATUS_DONE && !memcmp(buffer, before, LENGTH),
	      "the same again gives back what was there");
	return 0;
}
