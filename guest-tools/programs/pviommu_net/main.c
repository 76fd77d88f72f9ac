// SPDX-License-Identifier: MIT
/*
 * pviommu_net: what net.sh needs and busybox does not have. Its commands are in the table below.
 *
 * Exit status: 0 done and right; 1 not, with the reason on standard error; 2 wrong arguments.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "net.h"

static const struct {
	const char *name;
	int (*run)(int count, char **words);
	const char *arguments;
	const char *meaning;
} commands[] = {
	{ "serve", serve, "PORT", "the other end of tcp and udp, until it is killed" },
	{ "tcp", tcp, "ADDRESS PORT BYTES CONNECTIONS", "so many each way on each" },
	{ "udp", udp, "ADDRESS PORT COUNT SIZE WINDOW", "they come back, WINDOW on their way" },
	{ "capture", capture, "INTERFACE all|own", "a line for each frame, until SIGTERM" },
	{ "raw", raw, "INTERFACE ADDRESS COUNT", "numbered frames for that hardware address" },
	{ "show", show, "INTERFACE", "driver, link and speed, as ethtool has them" },
	{ "statistics", statistics, "INTERFACE", "names and values, as ethtool -S" },
	{ "feature", feature, "INTERFACE NAME on|off", "ethtool -K, with the kernel's name of it" },
	{ "channels", channels, "INTERFACE COUNT", "pairs of queues, as ethtool -L" },
	{ "xdp", xdp, "INTERFACE pass|drop COMMAND...", "runs it while all frames pass or drop" },
};

int failed(const char *what)
{
	if (errno)
		fprintf(stderr, "pviommu_net: %s: %s\n", what, strerror(errno));
	else
		fprintf(stderr, "pviommu_net: %s\n", what);
	return FAILED;
}

double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	int status = USAGE;

	for (size_t i = 0; argc > 1 && i < COUNT_OF(commands); i++)
		if (!strcmp(argv[1], commands[i].name))
			status = commands[i].run(argc - 2, argv + 2);
	if (status == USAGE)
		for (size_t i = 0; i < COUNT_OF(commands); i++)
			fprintf(stderr, "pviommu_net %s %s: %s\n", commands[i].name,
				commands[i].arguments, commands[i].meaning);
	return status;
}
