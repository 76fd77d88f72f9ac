/*
 * What a server and its programs share: a file beside the socket, which all of them map, and which begins as zeros.
 *
 * A box holds a message and the reply to it. While the server watches a box, a message that is put there needs no
 * system call at either end; else messages go by the socket. See channel.c and boxes.c.
 */
#ifndef BOXES_H
#define BOXES_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#define BOXES 1024
#define ROOM 256 /* what goes with a message or a reply in a box */

enum kind { OPEN, REQUEST, IS, CLAIM, COPY, READ, WRITE, MAP, TAKE, PUT, HELLO, RING };
enum answer { DONE, NEED_FD, OPENED, NEED_COPY, READY, STRANGER };
#define KEPT 0x80000000U /* with an answer: it is left in the socket, so that poll() says that there is something */

#define WATCH 0x100 /* with a kind: more is to come soon, by a box if the server watches it */

struct message {
	uint32_t kind, request;
	uint64_t argument, sequence;
};

struct reply {
	uint32_t answer;
	int32_t value;
	uint64_t sequence; /* of the message */
};

struct box {
	/* A program's. The sequence of the message is 0 while it is written. */
	struct message message;
	uint64_t token; /* of the process: see HELLO in server.py */
	uint32_t connection, size;
	uint64_t sleeps; /* sequence of the message whose reply is to come by the socket, as who waits for it sleeps there */
	/* The server's. */
	uint32_t is_watched, unused;
	uint64_t taken; /* sequence of the last message */
	struct reply reply; /* complete once the sequence is there */
	uint32_t reply_size, reserved;
	/* What goes with them. */
	char behind[ROOM], reply_behind[ROOM];
	char padding[40];
};

/* Where boxes.py finds it. */
_Static_assert(sizeof(struct box) == 640 && offsetof(struct box, is_watched) == 48, "struct box");

struct shared {
	struct box boxes[BOXES]; /* a connection has the one of its number, modulo BOXES, and the lock */
	uint64_t sequence; /* of the last message of all */
	uint32_t connections; /* number of the last one */
	uint32_t is_ready;
	pthread_mutex_t locks[BOXES];
};

#endif
