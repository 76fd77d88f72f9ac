// SPDX-License-Identifier: MIT
/* The DMA test engine, driven from user space: its BARs, its interrupt, its descriptors. */
#include <errno.h>
#include <inttypes.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine.h"
#include "ktap.h"
#include "memory.h"

#define TIMEOUT_MS	10000

static void *map_bar(int device, unsigned int bar, size_t size, off_t *at)
{
	struct vfio_region_info info = { .argsz = sizeof(info), .index = bar };
	void *mapped;

	if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info) || info.size < size)
		return NULL;
	*at = info.offset;
	if (!(info.flags & VFIO_REGION_INFO_FLAG_MMAP))
		return NULL;
	mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, device, info.offset);
	return mapped == MAP_FAILED ? NULL : mapped;
}

/* VFIO opens a device with bus mastering off. */
static bool enable(int device)
{
	struct vfio_region_info info = {
		.argsz = sizeof(info), .index = VFIO_PCI_CONFIG_REGION_INDEX,
	};
	uint16_t command;
	off_t place;

	if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info))
		return false;
	place = info.offset + PCI_COMMAND;
	if (pread(device, &command, sizeof(command), place) != sizeof(command))
		return false;
	command |= PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
	return pwrite(device, &command, sizeof(command), place) == sizeof(command);
}

static bool arm_interrupt(int device, int eventfd)
{
	struct {
		struct vfio_irq_set head;
		int32_t eventfd;
	} set = {
		.head = {
			.argsz = sizeof(set),
			.flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
			.index = VFIO_PCI_MSIX_IRQ_INDEX,
			.count = 1,
		},
		.eventfd = eventfd,
	};

	return !ioctl(device, VFIO_DEVICE_SET_IRQS, &set);
}

static uint32_t read_register(struct engine *engine, unsigned int offset)
{
	uint32_t value = 0;

	if (engine->registers)
		return __atomic_load_n(&engine->registers[offset / 4], __ATOMIC_ACQUIRE);
	if (pread(engine->attachment.device, &value, sizeof(value),
		  engine->registers_at + offset) != sizeof(value))
		complain("register %#x cannot be read: %s", offset, strerror(errno));
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	return value;
}

/* Release: earlier stores, also those to shared memory, are visible when the device reads this. */
static void write_register(struct engine *engine, unsigned int offset, uint32_t value)
{
	if (engine->registers) {
		__atomic_store_n(&engine->registers[offset / 4], value, __ATOMIC_RELEASE);
		return;
	}
	__atomic_thread_fence(__ATOMIC_RELEASE);
	if (pwrite(engine->attachment.device, &value, sizeof(value),
		   engine->registers_at + offset) != sizeof(value))
		complain("register %#x cannot be written: %s", offset, strerror(errno));
}

static bool identify(struct engine *engine)
{
	return same("register MAGIC", read_register(engine, PVDT_REG_MAGIC), PVDT_MAGIC) &&
	       same("register VERSION", read_register(engine, PVDT_REG_VERSION), PVDT_VERSION);
}

static bool set_up(struct engine *engine)
{
	int device = engine->attachment.device;
	off_t shared_at;

	engine->registers = map_bar(device, PVDT_REGISTER_BAR, REGISTERS_SIZE,
				    &engine->registers_at);
	engine->shared = map_bar(device, PVDT_SHARED_BAR, PVDT_SHARED_BAR_SIZE, &shared_at);
	if ((!engine->registers && PAGE <= REGISTERS_SIZE) || !engine->shared)
		return complain("the BARs of %s cannot be mapped", engine->address);
	if (!enable(device))
		return complain("bus mastering of %s cannot be turned on", engine->address);
	engine->interrupt = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (engine->interrupt < 0 || !arm_interrupt(device, engine->interrupt))
		return complain("the interrupt of %s: %s", engine->address, strerror(errno));
	if (!identify(engine))
		return false;
	write_register(engine, PVDT_REG_CONTROL, PVDT_CONTROL_RESET);
	write_register(engine, PVDT_REG_CONTROL, PVDT_CONTROL_ENABLE);
	return true;
}

int engine_open(struct engine *engine, struct space *space, const char *address)
{
	int result;

	*engine = (struct engine){ .address = address, .interrupt = -1 };
	result = space->ops->attach(space, address, &engine->attachment);
	if (result) {
		complain("%s does not attach: %s", address, strerrorname_np(-result));
		return result;
	}
	if (!set_up(engine)) {
		engine_close(engine);
		return -ENODEV;
	}
	return 0;
}

void engine_close(struct engine *engine)
{
	if (engine->registers)
		munmap(engine->registers, REGISTERS_SIZE);
	if (engine->shared)
		munmap(engine->shared, PVDT_SHARED_BAR_SIZE);
	if (engine->interrupt >= 0)
		close(engine->interrupt);
	attachment_close(&engine->attachment);
	*engine = (struct engine){ .attachment = { -1, -1 }, .interrupt = -1 };
}

static bool wait_for_interrupt(struct engine *engine)
{
	struct pollfd wait = { .fd = engine->interrupt, .events = POLLIN };
	uint64_t count;

	return poll(&wait, 1, TIMEOUT_MS) == 1 &&
	       read(engine->interrupt, &count, sizeof(count)) == sizeof(count) && count == 1;
}

bool engine_run(struct engine *engine, struct pvdt_descriptor request, struct outcome *outcome)
{
	struct pvdt_descriptor *place = engine->shared;

	place += engine->producer % PVDT_ENTRIES;
	request.flags |= PVDT_FLAG_INTERRUPT;
	request.status = PVDT_STATUS_PENDING;
	*place = request;
	write_register(engine, PVDT_REG_PRODUCER, ++engine->producer);
	outcome->interrupted = wait_for_interrupt(engine);
	outcome->status = __atomic_load_n(&place->status, __ATOMIC_ACQUIRE);
	outcome->detail = place->detail;
	outcome->checksum = place->checksum;
	if (!outcome->interrupted)
		return complain("%s: no interrupt within %d ms, status %u", engine->address,
				TIMEOUT_MS, outcome->status);
	return true;
}

static bool succeeds(struct engine *engine, const struct pvdt_descriptor *request)
{
	struct outcome outcome;

	if (!engine_run(engine, *request, &outcome))
		return false;
	if (outcome.status == PVDT_STATUS_DONE)
		return true;
	return complain("%s: operation %u, length %#x, src %#" PRIx64 ", dst %#" PRIx64
			": status %u, detail %#" PRIx64,
			engine->address, request->op, request->length, (uint64_t)request->src,
			(uint64_t)request->dst, outcome.status, outcome.detail);
}

static bool faults(struct engine *engine, const struct pvdt_descriptor *request, uint64_t refused)
{
	struct outcome outcome;

	return engine_run(engine, *request, &outcome) &&
	       same("status", outcome.status, PVDT_STATUS_FAULT) &&
	       same("refused address", outcome.detail, refused);
}

/* How much of the @left bytes one request can be about. */
static uint32_t piece(uint32_t left)
{
	return left < PVDT_MAX_LENGTH ? left : PVDT_MAX_LENGTH;
}

bool engine_copies(struct engine *engine, uint64_t dst, uint64_t src, uint32_t length)
{
	struct pvdt_descriptor request = { .op = PVDT_OP_COPY };
	uint32_t done;

	for (done = 0; done < length; done += request.length) {
		request.src = src + done;
		request.dst = dst + done;
		request.length = piece(length - done);
		if (!succeeds(engine, &request))
			return false;
	}
	return true;
}

bool engine_fills(struct engine *engine, uint64_t dst, uint64_t pattern, uint32_t length)
{
	struct pvdt_descriptor request = { .op = PVDT_OP_FILL, .pattern = pattern };
	uint32_t done;

	for (done = 0; done < length; done += request.length) {
		request.dst = dst + done;
		request.length = piece(length - done);
		if (!succeeds(engine, &request))
			return false;
	}
	return true;
}

bool engine_write_faults(struct engine *engine, uint64_t dst, uint32_t length, uint64_t refused)
{
	struct pvdt_descriptor request = { .op = PVDT_OP_FILL, .dst = dst, .length = length };

	return faults(engine, &request, refused);
}

bool engine_read_faults(struct engine *engine, uint64_t src, uint32_t length, uint64_t refused)
{
	struct pvdt_descriptor request = { .op = PVDT_OP_CHECKSUM, .src = src, .length = length };

	return faults(engine, &request, refused);
}

void engine_queue_writes(struct engine *engine, uint64_t dst, unsigned int count)
{
	struct pvdt_descriptor *places = engine->shared;
	unsigned int i;

	for (i = 0; i < count; i++)
		places[(engine->producer + i) % PVDT_ENTRIES] = (struct pvdt_descriptor){
			.op = PVDT_OP_FILL, .dst = dst + i * PAGE, .length = 8,
		};
	engine->producer += count;
	write_register(engine, PVDT_REG_PRODUCER, engine->producer);
}
