// SPDX-License-Identifier: MIT
/* What ethtool and a loader of XDP programs do. */
#include <errno.h>
#include <linux/bpf.h>
#include <linux/ethtool.h>
#include <linux/if_link.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "net.h"

#define MOST_FEATURES	256
#define MOST_STATISTICS	1024
#define BLOCKS		(MOST_FEATURES / 32)

static int ask(const char *interface, void *data)
{
	struct ifreq request = { .ifr_data = data };
	int fd = socket(AF_INET, SOCK_DGRAM, 0), status;

	snprintf(request.ifr_name, IFNAMSIZ, "%s", interface);
	status = ioctl(fd, SIOCETHTOOL, &request);
	close(fd);
	return status;
}

int show(int count, char **words)
{
	struct ethtool_drvinfo driver = { .cmd = ETHTOOL_GDRVINFO };
	struct ethtool_value link = { .cmd = ETHTOOL_GLINK };
	struct ethtool_cmd speed = { .cmd = ETHTOOL_GSET };
	struct ethtool_channels queues = { .cmd = ETHTOOL_GCHANNELS };
	uint32_t mbit = 0;

	if (count != 1)
		return USAGE;
	if (ask(words[0], &driver) || ask(words[0], &link) || ask(words[0], &queues))
		return failed(words[0]);
	if (!ask(words[0], &speed))
		mbit = ethtool_cmd_speed(&speed);
	printf("driver %s, bus %s, link %s, speed %u, queues %u of %u, statistics %u\n",
	       driver.driver, driver.bus_info, link.data ? "up" : "down", mbit,
	       queues.combined_count, queues.max_combined, driver.n_stats);
	return DONE;
}

int statistics(int count, char **words)
{
	static struct {
		struct ethtool_gstrings head;
		char names[MOST_STATISTICS][ETH_GSTRING_LEN];
	} strings = { .head = { .cmd = ETHTOOL_GSTRINGS, .string_set = ETH_SS_STATS } };
	static struct {
		struct ethtool_stats head;
		uint64_t values[MOST_STATISTICS];
	} found = { .head = { .cmd = ETHTOOL_GSTATS } };
	struct ethtool_drvinfo driver = { .cmd = ETHTOOL_GDRVINFO };

	if (count != 1)
		return USAGE;
	errno = 0;
	if (ask(words[0], &driver) || driver.n_stats > MOST_STATISTICS ||
	    ask(words[0], &strings) || ask(words[0], &found))
		return failed(words[0]);
	for (uint32_t i = 0; i < found.head.n_stats; i++)
		printf("%.*s %llu\n", ETH_GSTRING_LEN, strings.names[i],
		       (unsigned long long)found.values[i]);
	return DONE;
}

int channels(int count, char **words)
{
	struct ethtool_channels wanted = { .cmd = ETHTOOL_GCHANNELS };

	if (count != 2)
		return USAGE;
	if (ask(words[0], &wanted))
		return failed(words[0]);
	wanted.cmd = ETHTOOL_SCHANNELS;
	wanted.combined_count = atoi(words[1]);
	if (ask(words[0], &wanted))
		return failed(words[1]);
	wanted.cmd = ETHTOOL_GCHANNELS;
	errno = 0;
	if (ask(words[0], &wanted) || wanted.combined_count != (unsigned int)atoi(words[1]))
		return failed("pairs of queues: they are not what was asked for");
	return DONE;
}

int feature(int count, char **words)
{
	static struct {
		struct ethtool_gstrings head;
		char names[MOST_FEATURES][ETH_GSTRING_LEN];
	} strings = { .head = { .cmd = ETHTOOL_GSTRINGS, .string_set = ETH_SS_FEATURES } };
	struct {
		struct ethtool_sset_info head;
		uint32_t length;
	} size = { .head = { .cmd = ETHTOOL_GSSET_INFO, .sset_mask = 1ull << ETH_SS_FEATURES } };
	struct {
		struct ethtool_sfeatures head;
		struct ethtool_set_features_block blocks[BLOCKS];
	} wanted = { .head = { .cmd = ETHTOOL_SFEATURES } };
	struct {
		struct ethtool_gfeatures head;
		struct ethtool_get_features_block blocks[BLOCKS];
	} got = { .head = { .cmd = ETHTOOL_GFEATURES, .size = BLOCKS } };
	bool on = count == 3 && !strcmp(words[2], "on");
	uint32_t place = 0;

	if (count != 3 || (!on && strcmp(words[2], "off")))
		return USAGE;
	if (ask(words[0], &size) || size.length > MOST_FEATURES || ask(words[0], &strings))
		return failed(words[0]);
	while (place < size.length && strcmp(strings.names[place], words[1]))
		place++;
	errno = 0;
	if (place == size.length)
		return failed("the kernel knows none of that name");
	wanted.head.size = (size.length + 31) / 32;
	wanted.blocks[place / 32].valid = 1u << place % 32;
	wanted.blocks[place / 32].requested = on ? 1u << place % 32 : 0;
	if (ask(words[0], &wanted) < 0 || ask(words[0], &got))
		return failed(words[1]);
	errno = 0;
	if (!!(got.blocks[place / 32].active & 1u << place % 32) != on)
		return failed("it is not what was asked for");
	return DONE;
}

static int bpf(int command, union bpf_attr *attributes)
{
	return syscall(SYS_bpf, command, attributes, sizeof(*attributes));
}

int xdp(int count, char **words)
{
	struct bpf_insn program[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = XDP_PASS },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	union bpf_attr load = { 0 }, link = { 0 };
	int status;

	if (count < 3)
		return USAGE;
	if (!strcmp(words[1], "drop"))
		program[0].imm = XDP_DROP;
	else if (strcmp(words[1], "pass"))
		return USAGE;
	load.prog_type = BPF_PROG_TYPE_XDP;
	load.insn_cnt = COUNT_OF(program);
	load.insns = (uintptr_t)program;
	load.license = (uintptr_t)"Dual MIT/GPL";
	link.link_create.prog_fd = bpf(BPF_PROG_LOAD, &load);
	if ((int)link.link_create.prog_fd < 0)
		return failed("BPF_PROG_LOAD");
	link.link_create.target_ifindex = if_nametoindex(words[0]);
	link.link_create.attach_type = BPF_XDP;
	link.link_create.flags = XDP_FLAGS_DRV_MODE;	/* not the kernel's general one */
	if (bpf(BPF_LINK_CREATE, &link) < 0)	/* its end is that of the descriptor */
		return failed("BPF_LINK_CREATE");
	if (!fork()) {
		execvp(words[2], words + 2);
		_exit(127);
	}
	wait(&status);
	return WIFEXITED(status) ? WEXITSTATUS(status) : FAILED;
}
