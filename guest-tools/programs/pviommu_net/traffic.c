// SPDX-License-Identifier: MIT
/*
 * TCP and UDP between two ends that know each byte. A connection of TCP begins with a struct
 * request; then its client sends, and once all of that was right the server answers with OK and
 * sends as much. A datagram of UDP comes back as it was, and begins with its number.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net.h"

#define OK		'k'
#define CHUNK		65536
#define MOST_CLIENTS	4096
#define LEAST_DATAGRAM	8
#define MOST_DATAGRAM	65507
#define MOST_WINDOW	1024
#define SILENCE_MS	10000	/* after which datagrams on their way are lost */

struct request {
	uint64_t seed;
	uint64_t bytes;
};

enum stage { ASK, UP, ANSWER, DOWN, OVER };

/* One end of a connection. The client sends in the stages ASK and UP, the server in the others. */
struct end {
	int fd;
	bool is_client;
	enum stage stage;
	uint64_t at;	/* bytes of this stage that are done */
	struct request request;
	uint32_t waits_for;	/* the events of epoll that it is registered with */
};

static uint8_t buffer[CHUNK];

static bool sends(const struct end *end)
{
	return end->is_client == (end->stage == ASK || end->stage == UP);
}

static uint64_t stage_bytes(const struct end *end)
{
	switch (end->stage) {
	case ASK:
		return sizeof(end->request);
	case ANSWER:
		return 1;
	default:
		return end->request.bytes;
	}
}

/* The bytes of the stages UP and DOWN differ. */
static uint64_t seed(const struct end *end)
{
	return end->stage == UP ? end->request.seed : ~end->request.seed;
}

/* What is to be sent next, in the buffer. */
static void prepare(const struct end *end, size_t length)
{
	if (end->stage == ASK)
		memcpy(buffer, (const uint8_t *)&end->request + end->at, length);
	else if (end->stage == ANSWER)
		buffer[0] = OK;
	else
		fill(buffer, length, seed(end), end->at);
}

/* Whether what came is right. */
static bool take(struct end *end, size_t length)
{
	if (end->stage == ASK) {
		memcpy((uint8_t *)&end->request + end->at, buffer, length);
		return true;
	}
	if (end->stage == ANSWER)
		return buffer[0] == OK;
	return is_filled(buffer, length, seed(end), end->at);
}

/*
 * Go on with @end as far as its socket lets it, but no further than some chunks, so that others
 * have their turn. Returns 1 if it moved, 0 if it has to wait, -1 with errno if it cannot go on
 * (EBADMSG: wrong bytes).
 */
static int go_on(struct end *end)
{
	int moved = 0;

	for (int turn = 0; turn < 16 && end->stage != OVER; turn++) {
		uint64_t left = stage_bytes(end) - end->at;
		size_t length = left < CHUNK ? left : CHUNK;
		ssize_t done = 0;

		if (!left) {
			end->stage++;
			end->at = 0;
			moved = 1;
			continue;
		}
		if (sends(end)) {
			prepare(end, length);
			done = send(end->fd, buffer, length, MSG_NOSIGNAL);
		} else {
			done = recv(end->fd, buffer, length, 0);
			if (!done)
				errno = ECONNRESET;	/* it ended too early */
			if (done > 0 && !take(end, done)) {
				errno = EBADMSG;
				done = 0;
			}
		}
		if (done < 0 && (errno == EAGAIN || errno == EINTR))
			return moved;
		if (done <= 0)
			return -1;
		end->at += done;
		moved = 1;
	}
	return moved;
}

/* Have epoll tell of what @end waits for. */
static int await(int poll, struct end *end)
{
	struct epoll_event event = { .events = sends(end) ? EPOLLOUT : EPOLLIN, .data.ptr = end };
	int operation = end->waits_for ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;

	if (end->stage == OVER)
		event.events = EPOLLIN;	/* the end of the other side */
	if (event.events == end->waits_for)
		return 0;
	end->waits_for = event.events;
	return epoll_ctl(poll, operation, end->fd, &event);
}

static void allow_descriptors(void)
{
	struct rlimit limit = { MOST_CLIENTS + 64, MOST_CLIENTS + 64 };

	setrlimit(RLIMIT_NOFILE, &limit);
}

static bool number(const char *text, uint64_t least, uint64_t most, uint64_t *value)
{
	char *end;

	errno = 0;
	*value = strtoull(text, &end, 10);
	return *text && !*end && !errno && *value >= least && *value <= most;
}

static bool place(const char *host, const char *port, struct sockaddr_in *address)
{
	uint64_t value;

	if (!number(port, 1, 65535, &value))
		return false;
	*address = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons(value) };
	return !host || inet_pton(AF_INET, host, &address->sin_addr) == 1;
}

static int listener(int type, const struct sockaddr_in *address)
{
	int fd = socket(AF_INET, type | SOCK_NONBLOCK, 0), yes = 1, size = 4 << 20;

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) ||
	    bind(fd, (const struct sockaddr *)address, sizeof(*address)))
		return -1;
	if (type == SOCK_DGRAM)
		setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
	else if (listen(fd, MOST_CLIENTS))
		return -1;
	return fd;
}

static void echo(int fd)
{
	struct sockaddr_in from;
	socklen_t size = sizeof(from);
	ssize_t length;

	while ((length = recvfrom(fd, buffer, CHUNK, 0, (struct sockaddr *)&from, &size)) >= 0)
		sendto(fd, buffer, length, 0, (struct sockaddr *)&from, size);
}

static void welcome(int poll, int fd)
{
	int client;

	while ((client = accept4(fd, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
		struct end *end = calloc(1, sizeof(*end));

		end->fd = client;
		await(poll, end);
	}
}

int serve(int count, char **words)
{
	struct epoll_event events[64];
	struct epoll_event tcp_event = { .events = EPOLLIN }, udp_event = { .events = EPOLLIN };
	struct sockaddr_in address;
	int poll = epoll_create1(0), streams, datagrams;

	if (count != 1 || !place(NULL, words[0], &address))
		return USAGE;
	allow_descriptors();
	streams = listener(SOCK_STREAM, &address);
	datagrams = listener(SOCK_DGRAM, &address);
	tcp_event.data.ptr = &streams;
	udp_event.data.ptr = &datagrams;
	if (streams < 0 || datagrams < 0 || epoll_ctl(poll, EPOLL_CTL_ADD, streams, &tcp_event) ||
	    epoll_ctl(poll, EPOLL_CTL_ADD, datagrams, &udp_event))
		return failed(words[0]);
	for (;;) {
		int found = epoll_wait(poll, events, 64, -1);

		for (int i = 0; i < found; i++) {
			struct end *end = events[i].data.ptr;

			if (events[i].data.ptr == &streams) {
				welcome(poll, streams);
			} else if (events[i].data.ptr == &datagrams) {
				echo(datagrams);
			} else if (end->stage == OVER || go_on(end) < 0) {
				if (end->stage != OVER)
					failed("a connection");
				close(end->fd);
				free(end);
			} else {
				await(poll, end);
			}
		}
	}
}

int tcp(int count, char **words)
{
	struct epoll_event events[64];
	struct sockaddr_in address;
	struct end *ends;
	uint64_t bytes, connections, open;
	int poll = epoll_create1(0);
	double begun = now();

	if (count != 4 || !place(words[0], words[1], &address) ||
	    !number(words[2], 0, 1ull << 40, &bytes) ||
	    !number(words[3], 1, MOST_CLIENTS, &connections))
		return USAGE;
	allow_descriptors();
	ends = calloc(connections, sizeof(*ends));
	for (uint64_t i = 0; i < connections; i++) {
		ends[i] = (struct end){ .is_client = true };
		ends[i].request = (struct request){ getpid() * 100000ull + i, bytes };
		ends[i].fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		if (ends[i].fd < 0 ||
		    (connect(ends[i].fd, (struct sockaddr *)&address, sizeof(address)) &&
		     errno != EINPROGRESS) ||
		    await(poll, &ends[i]))
			return failed("connect");
	}
	for (open = connections; open;) {
		int found = epoll_wait(poll, events, 64, LIMIT_SECONDS * 1000);

		errno = found ? errno : ETIMEDOUT;
		if (found <= 0)
			return failed("wait");
		for (int i = 0; i < found; i++) {
			struct end *end = events[i].data.ptr;

			if (go_on(end) < 0)
				return failed(errno == EBADMSG ? "wrong bytes" : "a connection");
			if (end->stage == OVER) {	/* it stays open until all are over */
				epoll_ctl(poll, EPOLL_CTL_DEL, end->fd, NULL);
				open--;
			} else {
				await(poll, end);
			}
		}
	}
	printf("%llu connections, %llu bytes each way on each, %.2f s\n",
	       (unsigned long long)connections, (unsigned long long)bytes, now() - begun);
	return DONE;
}

int udp(int count, char **words)
{
	struct sockaddr_in address;
	struct pollfd ready;
	uint64_t datagrams, size, window, sent = 0, back = 0, lost = 0;
	double begun = now();
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), room = 4 << 20;

	if (count != 5 || !place(words[0], words[1], &address) ||
	    !number(words[2], 1, 1 << 30, &datagrams) ||
	    !number(words[3], LEAST_DATAGRAM, MOST_DATAGRAM, &size) ||
	    !number(words[4], 1, MOST_WINDOW, &window))
		return USAGE;
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room));
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)))
		return failed("connect");
	ready = (struct pollfd){ .fd = fd, .events = POLLIN };
	while (back + lost < datagrams) {
		while (sent < datagrams && sent - back - lost < window) {
			memcpy(buffer, &sent, LEAST_DATAGRAM);
			fill(buffer + LEAST_DATAGRAM, size - LEAST_DATAGRAM, sent, 0);
			send(fd, buffer, size, 0);	/* what is not taken is lost as well */
			sent++;
		}
		if (poll(&ready, 1, SILENCE_MS) <= 0)
			lost = sent - back;
		for (;;) {
			ssize_t length = recv(fd, buffer, CHUNK, 0);
			uint64_t value;

			if (length < 0 && errno == ECONNREFUSED)
				continue;	/* of one that was sent before */
			if (length < 0)
				break;
			memcpy(&value, buffer, LEAST_DATAGRAM);
			errno = 0;
			if ((uint64_t)length != size || value >= sent ||
			    !is_filled(buffer + LEAST_DATAGRAM, size - LEAST_DATAGRAM, value, 0))
				return failed("wrong bytes");
			back++;
		}
	}
	printf("%llu datagrams of %llu bytes, %llu lost, %.2f s\n",
	       (unsigned long long)datagrams, (unsigned long long)size,
	       (unsigned long long)(datagrams - back), now() - begun);
	errno = 0;
	if ((datagrams - back) * 100 > datagrams)
		return failed("more than one of a hundred datagrams is lost");
	return DONE;
}
