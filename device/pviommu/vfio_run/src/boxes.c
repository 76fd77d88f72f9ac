/* The server's end of boxes. Called by boxes.py, in the process of the server only. */
#include <poll.h>
#include <string.h>

#include "boxes.h"
#include "preload.h"

#define NOTHING -1 /* for so long */
#define OTHERS -2 /* have something */
#define TURNS 16 /* between two looks at the clock and at others */
#define MOST_TAKEN 4 /* before a look at others, if there is always a message */

/* What is taken out of a box; boxes.py unpacks it. */
struct taken {
	struct message message;
	uint64_t token;
	uint32_t connection, size;
	char behind[ROOM];
};

/* Whether there was a message that was not taken before. One that is written over meanwhile is taken later. */
static int take(struct box *box, struct taken *into)
{
	uint64_t sequence = __atomic_load_n(&box->message.sequence, __ATOMIC_ACQUIRE);

	if (!sequence || sequence == box->taken)
		return 0;
	memcpy(into, box, offsetof(struct taken, behind));
	if (into->size > ROOM)
		into->size = ROOM;
	memcpy(into->behind, box->behind, into->size);
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	if (__atomic_load_n(&box->message.sequence, __ATOMIC_RELAXED) != sequence)
		return 0;
	into->message.sequence = box->taken = sequence;
	return 1;
}

EXPORT size_t pviommu_shared_size(void);
EXPORT size_t pviommu_shared_size(void)
{
	return sizeof(struct shared);
}

/*
 * Takes a message out of one of some boxes, and says of which; waits for one so long, but not if `others`, a
 * descriptor of epoll, has something. All have their turn: programs may ask faster than they are answered.
 */
EXPORT int pviommu_take(struct shared *shared, const uint16_t *some, int count, int others, uint64_t ns, void *into);
EXPORT int pviommu_take(struct shared *shared, const uint16_t *some, int count, int others, uint64_t ns, void *into)
{
	static unsigned int first, taken;
	struct pollfd look = { others, POLLIN, 0 };
	uint64_t end = ns ? now() + ns : 0;
	unsigned int turns;
	int i, place;

	if (ns && ++taken % MOST_TAKEN == 0 && poll(&look, 1, 0) > 0)
		return OTHERS;
	__atomic_thread_fence(__ATOMIC_SEQ_CST); /* after is_watched was written */
	for (turns = 1;; turns++) {
		for (i = 0; i < count; i++) {
			place = (first + i) % count;
			if (take(&shared->boxes[some[place]], into)) {
				first = place + 1;
				return some[place];
			}
		}
		if (!ns)
			return NOTHING;
		if (turns % TURNS == 0) {
			if (poll(&look, 1, 0) > 0)
				return OTHERS;
			if (now() >= end)
				return NOTHING;
		}
		relax();
	}
}

/* Puts a reply into a box. 1: who waits for it sleeps, and is to have it by the socket. */
EXPORT int pviommu_answer(struct box *box, const struct reply *reply, const void *behind, uint32_t size);
EXPORT int pviommu_answer(struct box *box, const struct reply *reply, const void *behind, uint32_t size)
{
	uint64_t sequence = reply->sequence;

	if (size > ROOM)
		size = ROOM;
	box->reply.answer = reply->answer;
	box->reply.value = reply->value;
	box->reply_size = size;
	memcpy(box->reply_behind, behind, size);
	__atomic_store_n(&box->reply.sequence, sequence, __ATOMIC_SEQ_CST);
	return __atomic_compare_exchange_n(&box->sleeps, &sequence, 0, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
