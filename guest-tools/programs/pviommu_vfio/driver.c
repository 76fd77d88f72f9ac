// SPDX-License-Identifier: MIT
/* What the driver of the PV-IOMMU shows in debugfs. */
#include <errno.h>
#include <glob.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "driver.h"
#include "ktap.h"

static FILE *open_file(const char *name)
{
	char pattern[128];
	FILE *file = NULL;
	glob_t found;

	snprintf(pattern, sizeof(pattern), "/sys/kernel/debug/pviommu/*/%s", name);
	if (!glob(pattern, 0, NULL, &found)) {
		file = fopen(found.gl_pathv[0], "r");
		globfree(&found);
	}
	if (!file)
		complain("%s cannot be read: %s", pattern, strerror(errno));
	return file;
}

bool read_capabilities(struct capabilities *capabilities)
{
	FILE *file = open_file("capabilities");
	struct range range;
	bool has_msi = false;
	char line[256];
	int end;

	*capabilities = (struct capabilities){};
	if (!file)
		return false;
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "page_sizes %" SCNx64, &capabilities->page_sizes) == 1 ||
		    sscanf(line, "pool_pages %" SCNu64, &capabilities->pool_pages) == 1)
			continue;
		if (sscanf(line, "iova_range %" SCNx64 " %" SCNx64, &range.start,
			   &range.last) == 2 &&
		    capabilities->nr_ranges < MAX_RANGES)
			capabilities->ranges[capabilities->nr_ranges++] = range;
		end = 0;
		if (!has_msi &&
		    sscanf(line, "reserved %" SCNx64 " %" SCNx64 " msi global%n", &range.start,
			   &range.last, &end) == 2 && end) {
			capabilities->msi = range;
			has_msi = true;
		}
	}
	fclose(file);
	return has_msi || complain("the driver's capabilities name no MSI window");
}

bool read_usage(struct usage *usage)
{
	const struct {
		const char *name;
		uint64_t *value;
	} fields[] = {
		{ "contexts", &usage->contexts },	 { "bindings", &usage->bindings },
		{ "pool_used", &usage->pool_used },	 { "mapped_pages", &usage->mapped_pages },
		{ "domains", &usage->domains },		 { "table_pages", &usage->table_pages },
		{ "endpoints", &usage->endpoints },	 { "posted", &usage->posted },
		{ "waited", &usage->waited },
	};
	const unsigned int nr_fields = sizeof(fields) / sizeof(*fields);
	FILE *file = open_file("usage");
	unsigned int i, found = 0;
	char name[32];
	uint64_t value;
	char line[256];

	*usage = (struct usage){};
	if (!file)
		return false;
	while (fgets(line, sizeof(line), file)) {
		usage->guest_tables |= !strcmp(line, "tables guest\n");
		if (sscanf(line, "%31s %" SCNu64, name, &value) != 2)
			continue;
		for (i = 0; i < nr_fields; i++) {
			if (!strcmp(name, fields[i].name)) {
				*fields[i].value = value;
				found++;
			}
		}
	}
	fclose(file);
	return same("lines of usage", found, nr_fields);
}

bool same_usage(const struct usage *got, const struct usage *want)
{
	bool contexts = same("contexts", got->contexts, want->contexts);
	bool bindings = same("bindings", got->bindings, want->bindings);
	bool pool = same("pool_used", got->pool_used, want->pool_used);
	bool pages = same("mapped_pages", got->mapped_pages, want->mapped_pages);
	bool domains = same("domains", got->domains, want->domains);
	bool tables = same("table_pages", got->table_pages, want->table_pages);
	bool endpoints = same("endpoints", got->endpoints, want->endpoints);

	return contexts && bindings && pool && pages && domains && tables && endpoints;
}

/* Lines are: sequence reason access stream function context address */
static bool log_has(const char *reason, const char *access, const char *address, uint64_t iova)
{
	char got_reason[32], got_access[16], got_address[16], line[256];
	FILE *file = open_file("events");
	bool found = false;
	uint64_t got_iova;

	if (!file)
		return false;
	while (!found && fgets(line, sizeof(line), file))
		found = sscanf(line, "%*u %31s %15s %*u %15s %*u %" SCNx64, got_reason, got_access,
			       got_address, &got_iova) == 4 &&
			!strcmp(got_reason, reason) && !strcmp(got_access, access) &&
			!strcmp(got_address, address) && got_iova == iova;
	fclose(file);
	return found;
}

bool event_is_logged(const char *reason, const char *access, const char *address, uint64_t iova)
{
	const struct timespec pause = { .tv_nsec = 1000000 };
	unsigned int tries;

	/* events come by interrupt, beside the request's own completion */
	for (tries = 0; tries < 2000; tries++) {
		if (log_has(reason, access, address, iova))
			return true;
		nanosleep(&pause, NULL);
	}
	return complain("the event log has no %s %s of %s at %#" PRIx64, reason, access, address,
			iova);
}
