/*
 * Stands in for a libvfio-user of the current generation: the same exports with its arguments, which it writes down.
 * It serves nobody, and calls the callbacks that it is given.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/types.h>
#include <unistd.h>

struct iovec {
	void *iov_base;
	size_t iov_len;
};

struct dma_info {
	struct iovec iova;
	void *vaddr;
	struct iovec mapping;
	size_t page_size;
	uint32_t prot;
};

struct migration {
	int version;
	int (*transition)(void *ctx, int state);
	ssize_t (*read_data)(void *ctx, void *buf, uint64_t count);
	ssize_t (*write_data)(void *ctx, void *buf, uint64_t count);
};

static char said[4096];
static size_t length;
static int context;
static int poll_fd;
static void (*dma_register)(void *ctx, struct dma_info *info);
static void (*dma_unregister)(void *ctx, struct dma_info *info);
static struct migration migration;

#define SAY(...) (length += snprintf(said + length, sizeof(said) - length, __VA_ARGS__))

const char *standin_said(void) { return said; }

void standin_map(uint64_t iova, uint64_t size)
{
	struct dma_info info = { .iova = { (void *)iova, size }, .prot = 3 };

	dma_register(&context, &info);
}

void standin_unmap(uint64_t iova, uint64_t size)
{
	struct dma_info info = { .iova = { (void *)iova, size }, .prot = 3 };

	dma_unregister(&context, &info);
}

int standin_migrate(void)
{
	char data[8];
	ssize_t got;

	migration.transition(&context, 2);
	got = migration.read_data(&context, data, sizeof(data));
	migration.transition(&context, 4);
	return got < 0 ? -1 : (int)migration.write_data(&context, data, got);
}

size_t dma_sg_size(void) { return 48; }
void *vfu_create_ctx(int trans, const char *path, int flags, void *pvt, int type)
{
	FILE *file = fopen(path, "w");

	length = 0;
	said[0] = 0;
	poll_fd = eventfd(0, 0);
	if (file)
		fclose(file);
	return &context;
}
int vfu_realize_ctx(void *ctx) { return 0; }
int vfu_attach_ctx(void *ctx) { return 0; }
int vfu_get_poll_fd(void *ctx) { return poll_fd; }
int vfu_run_ctx(void *ctx) { return 0; }
void vfu_destroy_ctx(void *ctx) { close(poll_fd); }
void *vfu_get_private(void *ctx) { return NULL; }
void vfu_log(void *ctx, int level, const char *format, ...) {}
int vfu_setup_log(void *ctx, void *log, int level) { return 0; }
int vfu_setup_region(void *ctx, int index, size_t size, void *access, int flags, struct iovec *areas, uint32_t count,
		     int fd, uint64_t offset)
{
	SAY("region %d %zu %d;", index, size, flags);
	return 0;
}
void vfu_setup_device_quiesce_cb(void *ctx, void *quiesce) {}
int vfu_device_quiesced(void *ctx, int error) { return 0; }
int vfu_setup_device_reset_cb(void *ctx, void *reset) { return 0; }
int vfu_setup_device_dma(void *ctx, size_t most, void *reg, void *unreg)
{
	SAY("dma %zu;", most);
	dma_register = reg;
	dma_unregister = unreg;
	return 0;
}
int vfu_setup_device_nr_irqs(void *ctx, int type, uint32_t count) { return 0; }
int vfu_setup_irq_state_callback(void *ctx, int type, void *cb) { return 0; }
int vfu_setup_device_migration_callbacks(void *ctx, const struct migration *given)
{
	SAY("migration %d;", given->version);
	migration = *given;
	return 0;
}
int vfu_irq_trigger(void *ctx, uint32_t vector) { return 0; }
int vfu_addr_to_sgl(void *ctx, void *address, size_t size, void *sgl, size_t most, int prot) { return 1; }
int vfu_sgl_get(void *ctx, void *sgl, struct iovec *iov, size_t count, int flags) { return -1; }
void vfu_sgl_mark_dirty(void *ctx, void *sgl, size_t count) {}
void vfu_sgl_put(void *ctx, void *sgl, struct iovec *iov, size_t count) {}
int vfu_sgl_read(void *ctx, void *sgl, size_t count, char *data, int flags)
{
	SAY("read %zu flags %d;", count, flags);
	data[0] = 'r';
	return 0;
}
int vfu_sgl_write(void *ctx, void *sgl, size_t count, const char *data, int flags)
{
	SAY("write %zu %c flags %d;", count, data[0], flags);
	return 0;
}
bool vfu_sg_is_mappable(void *ctx, void *sgl) { return false; }
int vfu_pci_init(void *ctx, int type, int header, int revision) { return 0; }
void vfu_pci_set_id(void *ctx, uint16_t vid, uint16_t did, uint16_t ssvid, uint16_t ssid) {}
void vfu_pci_set_class(void *ctx, uint8_t base, uint8_t sub, uint8_t pi) {}
void *vfu_pci_get_config_space(void *ctx) { return NULL; }
ssize_t vfu_pci_add_capability(void *ctx, size_t position, int flags, void *data) { return 64; }
size_t vfu_pci_find_capability(void *ctx, bool extended, int id) { return 0; }
size_t vfu_pci_find_next_capability(void *ctx, bool extended, size_t position, int id) { return 0; }
int vfu_create_ioeventfd(void *ctx, uint32_t region, int fd, size_t offset, uint32_t size, uint32_t flags,
			 uint64_t datamatch, int32_t shadow_fd, uint64_t shadow_offset)
{
	SAY("ioeventfd %zu %u %u %llu %s %llu;", offset, size, flags, (unsigned long long)datamatch,
	    shadow_fd < 0 ? "none" : "shadow", (unsigned long long)shadow_offset);
	return 0;
}
