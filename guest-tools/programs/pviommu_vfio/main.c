// SPDX-License-Identifier: MIT
/*
 * pviommu_vfio: opens DMA test engines through VFIO and tests what a driver in user space relies
 * on. Prints a KTAP report.
 *
 * Exit status: 0 all passed, 1 a test failed, the engine does not attach or the page is not mapped,
 * 2 wrong arguments.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ktap.h"
#include "memory.h"
#include "starve.h"
#include "tests.h"

#define MAX_LISTS	11
#define ANY_IOVA	0x10000000

static const char usage_text[] =
	"usage: pviommu_vfio [--type1|--iommufd] [--huge] [--other] ADDRESS [OTHER_ADDRESS]\n"
	"       pviommu_vfio [--type1|--iommufd] --attach|--map ADDRESS\n"
	"       pviommu_vfio --starve ADDRESS\n"
	"\n"
	"  --type1    the container of VFIO (default)\n"
	"  --iommufd  /dev/iommu and the devices' own files\n"
	"  --huge     with huge pages too; two of 2 MiB must have been set aside, in\n"
	"             /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages\n"
	"  --other    behind another IOMMU than the PV-IOMMU: without what only that one promises,\n"
	"             and without what its driver shows\n"
	"  --attach   only attach: prints \"attached\" or the name of the error\n"
	"  --map      only attach and map a page: prints \"mapped\" or the name of the error\n"
	"  --starve   attach to a container and map a page, while one allocation of the kernel\n"
	"             after the other fails: prints how many did, or what went wrong\n"
	"\n"
	"ADDRESS: PCI function of a DMA test engine that is bound to vfio-pci, as 0000:00:11.0\n";

struct options {
	const struct space_ops *ops;
	const char *addresses[2];
	unsigned int nr_addresses;
	bool huge, other, attach, map, starve;
};

static bool parse(int argc, char **argv, struct options *options)
{
	unsigned int single;
	int i;

	*options = (struct options){ .ops = &type1_ops };
	for (i = 1; i < argc; i++) {
		if (argv[i][0] != '-' && options->nr_addresses < 2)
			options->addresses[options->nr_addresses++] = argv[i];
		else if (!strcmp(argv[i], "--type1"))
			options->ops = &type1_ops;
		else if (!strcmp(argv[i], "--iommufd"))
			options->ops = &iommufd_ops;
		else if (!strcmp(argv[i], "--huge"))
			options->huge = true;
		else if (!strcmp(argv[i], "--other"))
			options->other = true;
		else if (!strcmp(argv[i], "--attach"))
			options->attach = true;
		else if (!strcmp(argv[i], "--map"))
			options->map = true;
		else if (!strcmp(argv[i], "--starve"))
			options->starve = true;
		else
			return false;
	}
	single = options->attach + options->map + options->starve;
	if (single > 1 || (options->starve && options->ops != &type1_ops))
		return false;
	return options->nr_addresses == 1 || (options->nr_addresses && !single);
}

static int map_one_page(struct space *space)
{
	void *page = aligned_alloc(PAGE, PAGE);
	int result = -ENOMEM;

	if (page)
		result = space->ops->map(space, page, ANY_IOVA, PAGE, SPACE_READ | SPACE_WRITE);
	free(page);
	return result;
}

static int attach_only(const struct options *options)
{
	const char *done = options->map ? "mapped" : "attached";
	struct attachment attachment;
	struct space space;
	int result = space_open(&space, options->ops);

	if (!result) {
		result = options->ops->attach(&space, options->addresses[0], &attachment);
		if (!result) {
			if (options->map)
				result = map_one_page(&space);
			attachment_close(&attachment);
		}
		space_close(&space);
	}
	printf("%s\n", result ? strerrorname_np(-result) : done);
	return result ? 1 : 0;
}

static int starve_only(const struct options *options)
{
	int failed = starve(options->addresses[0]);

	if (failed < 0)
		return 1;
	printf("%d\n", failed);
	return 0;
}

bool maps(struct fixture *f, const void *memory, uint64_t iova, uint64_t size, unsigned int access)
{
	int result = f->ops->map(&f->space, memory, iova, size, access);

	if (!result)
		return true;
	complain("map at %#" PRIx64 " of %#" PRIx64 " bytes:", iova, size);
	return gives("map", result, 0);
}

bool unmaps(struct fixture *f, uint64_t iova, uint64_t size)
{
	uint64_t unmapped = 0;

	return gives("unmap", f->ops->unmap(&f->space, iova, size, &unmapped), 0) &&
	       same("bytes unmapped", unmapped, size);
}

bool mapped_pages_are(struct fixture *f, uint64_t more)
{
	struct usage now;

	return f->other ||
	       (read_usage(&now) && same("mapped_pages", now.mapped_pages,
					 f->attached.mapped_pages + more * PAGE_FRAMES));
}

static bool open_one(struct fixture *f, struct space *space, struct engine *engine,
		     const char *address)
{
	int result = space_open(space, f->ops);

	if (result)
		return complain("no %s address space: %s", f->ops->name, strerrorname_np(-result));
	return !engine_open(engine, space, address);
}

/* For another IOMMU: the kernel knows its ranges once a function is attached. */
static bool ask_ranges(struct fixture *f)
{
	int count = f->ops->ranges(&f->space, f->capabilities.ranges);

	f->capabilities.nr_ranges = count > 0 ? count : 0;
	return count > 0 || complain("no IOVA ranges: %s", strerrorname_np(-count));
}

bool fixture_open(struct fixture *f)
{
	return open_one(f, &f->space, &f->engine, f->addresses[0]) &&
	       (!f->addresses[1] ||
		open_one(f, &f->other_space, &f->other_engine, f->addresses[1])) &&
	       (f->other ? ask_ranges(f) : read_usage(&f->attached));
}

void fixture_close(struct fixture *f)
{
	engine_close(&f->engine);
	engine_close(&f->other_engine);
	space_close(&f->space);
	space_close(&f->other_space);
}

/* With nothing open and nothing mapped. */
static bool fixture_init(struct fixture *f, const struct options *options)
{
	const struct attachment none = { .device = -1, .group = -1 };

	*f = (struct fixture){
		.ops = options->ops,
		.addresses = { options->addresses[0], options->addresses[1] },
		.huge = options->huge,
		.other = options->other,
		.space.fd = -1,
		.other_space.fd = -1,
		.engine = { .attachment = none, .interrupt = -1 },
		.other_engine = { .attachment = none, .interrupt = -1 },
		.memory = memory_get_scattered(MEMORY_SIZE),
	};
	return f->memory &&
	       (f->other || (read_capabilities(&f->capabilities) && read_usage(&f->before)));
}

static bool nothing_is_mapped(struct fixture *f)
{
	return gives("unmap of all", f->ops->unmap_all(&f->space), 0) &&
	       (!f->addresses[1] ||
		gives("unmap of all", f->ops->unmap_all(&f->other_space), 0)) &&
	       mapped_pages_are(f, 0);
}

static unsigned int length(const struct test *tests)
{
	unsigned int count = 0;

	while (tests[count].name)
		count++;
	return count;
}

static void run_attached(struct fixture *f, const struct test *tests, bool attached)
{
	bool passed;

	for (; tests->name; tests++) {
		passed = attached && tests->run(f);
		/* the next one begins with nothing mapped, however this one ended */
		if (attached && !nothing_is_mapped(f))
			passed = false;
		ktap_result(passed, tests->name);
	}
}

static void run_closing(struct fixture *f, const struct test *tests, bool attached)
{
	for (; tests->name; tests++) {
		ktap_result(attached && tests->run(f), tests->name);
		fixture_close(f);
		/*
		 * one engine is enough for tests that open it again: each open and close resets it
		 */
		f->addresses[1] = NULL;
	}
}

/* What holds behind any IOMMU. */
static void run_other(struct fixture *f, const struct options *options)
{
	const struct test *lists[MAX_LISTS] = { dma_tests };
	bool attached = fixture_init(f, options) && fixture_open(f);
	unsigned int nr_lists = 1, total = 0, i;

	if (options->huge)
		lists[nr_lists++] = huge_tests;
	if (options->nr_addresses == 2)
		lists[nr_lists++] = isolation_tests;
	for (i = 0; i < nr_lists; i++)
		total += length(lists[i]);
	ktap_plan(total);
	for (i = 0; i < nr_lists; i++)
		run_attached(f, lists[i], attached);
	fixture_close(f);
}

static void run_all(struct fixture *f, const struct options *options)
{
	const struct test *lists[MAX_LISTS] = { ranges_tests, dma_tests, map_tests };
	unsigned int nr_lists = 3, total = length(lifetime_tests), i;
	bool attached = fixture_init(f, options);

	if (f->before.guest_tables) {
		lists[nr_lists++] = guest_tests;
	} else {
		lists[nr_lists++] = posting_tests;
		lists[nr_lists++] = pool_tests;
	}
	lists[nr_lists++] = options->ops->maps_bars ? bar_tests : no_bar_tests;
	if (options->ops->maps_bars && PAGE <= (PVDT_SHARED_BAR_SIZE - PVDT_SG_OFFSET) / 2)
		lists[nr_lists++] = bar_part_tests;
	if (options->ops->maps_bars && PAGE <= REGISTERS_SIZE)
		lists[nr_lists++] = register_tests;
	if (options->huge)
		lists[nr_lists++] = huge_tests;
	if (options->nr_addresses == 2) {
		lists[nr_lists++] = isolation_tests;
		if (!f->before.guest_tables)
			lists[nr_lists++] = sharing_tests;
	}
	if (options->ops == &iommufd_ops) {
		lists[nr_lists++] = dirty_tests;
		total += length(iommufd_tests);
	}
	for (i = 0; i < nr_lists; i++)
		total += length(lists[i]);
	ktap_plan(total);
	attached = attached && fixture_open(f);
	for (i = 0; i < nr_lists; i++)
		run_attached(f, lists[i], attached);
	run_closing(f, lifetime_tests, attached);
	if (options->ops == &iommufd_ops)
		run_closing(f, iommufd_tests, attached);
}

int main(int argc, char **argv)
{
	struct options options;
	struct fixture fixture;

	if (!parse(argc, argv, &options)) {
		fputs(usage_text, stderr);
		return 2;
	}
	if (options.attach || options.map)
		return attach_only(&options);
	if (options.starve)
		return starve_only(&options);
	(options.other ? run_other : run_all)(&fixture, &options);
	return ktap_failures() ? 1 : 0;
}
