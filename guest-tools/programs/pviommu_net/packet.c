// SPDX-License-Identifier: MIT
/* Frames as they are: AF_PACKET. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net.h"

#define MOST_BYTES	65536
#define EXPERIMENT	0x88b5	/* IEEE 802: for local experiments */
#define RAW_BYTES	60	/* the shortest frame, without its check sequence */

static volatile sig_atomic_t is_over;

static void end(int signal)
{
	(void)signal;
	is_over = 1;
}

static int open_packet(const char *interface, struct sockaddr_ll *place)
{
	int fd = socket(AF_PACKET, SOCK_RAW, 0), size = 4 << 20;

	*place = (struct sockaddr_ll){ .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL) };
	place->sll_ifindex = if_nametoindex(interface);
	if (fd < 0 || !place->sll_ifindex)
		return -1;
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
	return fd;
}

/* CRC-32 of IEEE 802.3, as zlib's. */
static uint32_t crc32(const uint8_t *data, size_t length)
{
	uint32_t value = ~0u;

	for (size_t i = 0; i < length; i++) {
		value ^= data[i];
		for (int bit = 0; bit < 8; bit++)
			value = value >> 1 ^ (value & 1 ? 0xedb88320 : 0);
	}
	return ~value;
}

int capture(int count, char **words)
{
	struct sigaction on_end = { .sa_handler = end };
	struct packet_mreq promiscuous = { .mr_type = PACKET_MR_PROMISC };
	struct tpacket_stats lost;
	struct sockaddr_ll place, from;
	socklen_t size = sizeof(lost);
	static uint8_t frame[MOST_BYTES];
	ssize_t length;
	bool is_all = count == 2 && !strcmp(words[1], "all");
	int fd;

	if (count != 2 || (!is_all && strcmp(words[1], "own")))
		return USAGE;
	fd = open_packet(words[0], &place);
	if (fd < 0 || bind(fd, (struct sockaddr *)&place, sizeof(place)))
		return failed(words[0]);
	promiscuous.mr_ifindex = place.sll_ifindex;
	if (is_all && setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &promiscuous,
				 sizeof(promiscuous)))
		return failed("PACKET_MR_PROMISC");
	sigaction(SIGTERM, &on_end, NULL);	/* without SA_RESTART, so that it ends a wait */
	printf("listening\n");
	fflush(stdout);
	while (!is_over) {
		size = sizeof(from);
		length = recvfrom(fd, frame, MOST_BYTES, 0, (struct sockaddr *)&from, &size);
		if (length < 0)
			continue;
		printf("frame %s %zd %08x\n", from.sll_pkttype == PACKET_OUTGOING ? "out" : "in",
		       length, crc32(frame, length));
	}
	size = sizeof(lost);
	if (getsockopt(fd, SOL_PACKET, PACKET_STATISTICS, &lost, &size))
		return failed("PACKET_STATISTICS");
	printf("captured %u, lost %u\n", lost.tp_packets, lost.tp_drops);
	return lost.tp_drops ? FAILED : DONE;
}

int raw(int count, char **words)
{
	struct sockaddr_ll place;
	uint8_t frame[RAW_BYTES] = { 0 }, address[ETH_ALEN];
	char *end;
	unsigned long frames;
	int fd;

	if (count != 3 || sscanf(words[1], "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", &address[0],
				 &address[1], &address[2], &address[3], &address[4],
				 &address[5]) != ETH_ALEN)
		return USAGE;
	frames = strtoul(words[2], &end, 10);
	if (!*words[2] || *end)
		return USAGE;
	fd = open_packet(words[0], &place);
	if (fd < 0)
		return failed(words[0]);
	memcpy(frame, address, ETH_ALEN);
	frame[ETH_ALEN] = 2;	/* some source of its own */
	frame[12] = EXPERIMENT >> 8;
	frame[13] = EXPERIMENT & 0xff;
	for (uint32_t i = 0; i < frames; i++) {
		memcpy(frame + 14, &i, sizeof(i));
		if (sendto(fd, frame, sizeof(frame), 0, (struct sockaddr *)&place,
			   sizeof(place)) < 0)
			return failed("sendto");
	}
	return DONE;
}
