// SPDX-License-Identifier: MIT
/*
 * Network cards, as far as all is as usual: endpoints/virtio_net.py and virtio/split.py in C. Whatever else there is,
 * errors above all, is left to Python before anything of it has happened: that finds the ring as it was, and does the
 * same buffer or frame again. Each part of a ring is copied once, and the copy is what counts.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "virtio.h"

#define MASK		0xFFFFu
#define DESCRIPTOR	16u
#define USED_ENTRY	8u
#define RING_HEADER	4u	/* flags and idx */
#define NO_INTERRUPT	1u

#define FLAG_NEXT	1u
#define FLAG_WRITE	2u
#define FLAG_INDIRECT	4u

#define NEEDS_CSUM	1u
#define DATA_VALID	2u
#define GSO_TCPV4	1u
#define GSO_TCPV6	4u

#define TURN		16u	/* frames of one direction before those of the other: BATCH of virtio_net.py */
#define MOST_EVENTS	16
#define MOST_COMPLETIONS 64u	/* as in protocol/vfio_user/signals.py */
#define MOST_BUFFER	(1ull << 32)	/* bytes, as in virtio/ring.py */
#define STOPPED_NS	200000000u	/* as in hosted.py */
#define STAY_NS		2000000u	/* how long frames may follow each other before the rest has a turn */

struct descriptor {
	uint64_t address;
	uint32_t length;
	uint16_t flags;
	uint16_t next;
};

enum look {
	LOOK_FOUND,
	LOOK_NOTHING,
	LOOK_UNUSUAL,
};

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- DMA ---- */

/* One request; 0 if Python has to make it. */
static uint32_t request(struct pv_card *card, const uint64_t *spans, uint64_t count, void *buffer, uint64_t size,
			uint32_t to_guest)
{
	struct pv_port *port = &card->port;
	uint32_t done;

	if (port->line) {
		uint32_t step = *port->step + 1;

		*port->step = step + 1;
		done = pv_request_by_guest(port->core, port->ctx, port->memory, port->line, step, spans, count,
					   card->runs, PV_PIECES, buffer, size, to_guest);
	} else {
		done = pv_request(port->core, port->ctx, port->memory, spans, count, card->runs, PV_PIECES, buffer,
				  size, to_guest);
	}
	port->requests += done;
	port->bytes += done ? size : 0;
	return done;
}

static uint32_t read_at(struct pv_card *card, uint64_t address, void *buffer, uint64_t size)
{
	uint64_t span[2] = { address, size };

	return request(card, span, 1, buffer, size, 0);
}

static uint32_t write_at(struct pv_card *card, uint64_t address, void *buffer, uint64_t size)
{
	uint64_t span[2] = { address, size };

	return request(card, span, 1, buffer, size, 1);
}

/* ---- buffers (virtio/split.py) ---- */

/* Whether there is a buffer `ahead` of the next one. */
static enum look look(struct pv_card *card, struct pv_split *ring, uint32_t ahead)
{
	uint32_t there;
	uint16_t idx;

	if (ring->there > ahead)
		return LOOK_FOUND;
	if (!read_at(card, ring->driver + 2, &idx, sizeof(idx)))
		return LOOK_UNUSUAL;
	__atomic_thread_fence(__ATOMIC_ACQUIRE);	/* an entry is read after the index that tells of it */
	there = (idx - ring->next_avail) & MASK;
	if (there > ring->size)
		return LOOK_UNUSUAL;
	ring->there = there;
	ring->is_dry = !there;
	return there > ahead ? LOOK_FOUND : LOOK_NOTHING;
}

/* Append the memory of a descriptor to the card's spans, and its size to *size; 0 if it is not as usual. */
static uint32_t add_span(struct pv_card *card, const struct descriptor *at, uint32_t is_writable, uint64_t *size)
{
	uint64_t *span = card->spans + 2 * card->count;

	if (!!(at->flags & FLAG_WRITE) != is_writable || !at->length || card->count == PV_PIECES ||
	    at->length - 1 > UINT64_MAX - at->address || at->length > MOST_BUFFER - *size)
		return 0;
	span[0] = at->address;
	span[1] = at->length;
	*size += at->length;
	card->count++;
	return 1;
}

/* The same for those in an indirect table. */
static uint32_t add_table(struct pv_card *card, const struct descriptor *at, uint32_t is_writable, uint64_t *size)
{
	uint32_t entries = at->length / DESCRIPTOR, index = 0;
	struct descriptor next;

	if (at->flags & FLAG_NEXT || at->length % DESCRIPTOR || at->length > sizeof(card->table) ||
	    !read_at(card, at->address, card->table, at->length))
		return 0;
	for (uint32_t taken = 0; taken < entries && index < entries; taken++) {
		memcpy(&next, card->table + index * DESCRIPTOR, sizeof(next));
		if (next.flags & FLAG_INDIRECT || !add_span(card, &next, is_writable, size))
			return 0;
		if (!(next.flags & FLAG_NEXT))
			return 1;
		index = next.next;
	}
	return 0;
}

/*
 * The buffer `ahead` of the next one, which is there: its memory is appended to the card's spans, and *head says how it
 * is given back. Returns its size; 0 if it is not as usual.
 */
static uint64_t chain_at(struct pv_card *card, const struct pv_split *ring, uint32_t ahead, uint32_t is_writable,
			 uint32_t *head)
{
	uint32_t place = (ring->next_avail + ahead) % ring->size, most = ring->size < PV_CHAIN ? ring->size : PV_CHAIN;
	struct descriptor at;
	uint64_t size = 0;
	uint16_t index;

	if (!read_at(card, ring->driver + RING_HEADER + 2 * place, &index, sizeof(index)))
		return 0;
	*head = index;
	for (uint32_t taken = 0; taken < most && index < ring->size; taken++) {
		if (!read_at(card, ring->desc + DESCRIPTOR * index, &at, sizeof(at)))
			return 0;
		if (at.flags & FLAG_INDIRECT)
			return ring->indirect && add_table(card, &at, is_writable, &size) ? size : 0;
		if (!add_span(card, &at, is_writable, &size))
			return 0;
		if (!(at.flags & FLAG_NEXT))
			return size;
		index = at.next;
	}
	return 0;
}

static void use(struct pv_split *ring, uint32_t head, uint64_t written)
{
	ring->entries[ring->count++] = (struct pv_used){ head, (uint32_t)written };
	ring->next_avail = (ring->next_avail + 1) & MASK;
	ring->there--;
	ring->is_dry = 0;
	ring->taken++;
}

/* Add 1 to the counter of an eventfd, and never block: protocol/vfio_user/signals.py says why it is done so. */
static uint32_t signal_eventfd(struct pv_card *card, int eventfd)
{
	struct iocb call = {
		.aio_lio_opcode = IOCB_CMD_PREAD,
		.aio_fildes = (uint32_t)eventfd,
		.aio_flags = IOCB_FLAG_RESFD,
		.aio_resfd = (uint32_t)eventfd,
	};
	struct iocb *calls[1] = { &call };
	struct io_event events[MOST_COMPLETIONS];
	struct timespec no_time = { 0, 0 };

	if (syscall(SYS_io_submit, card->signals, 1, calls) != 1)
		return 0;
	if (++*card->completed >= MOST_COMPLETIONS) {
		syscall(SYS_io_getevents, card->signals, 0, MOST_COMPLETIONS, events, &no_time);
		*card->completed = 0;
	}
	card->interrupts++;
	return 1;
}

/*
 * Tell the driver of the used buffers, and raise an interrupt if it wants one. 0 if Python has to do that, or the rest
 * of it.
 */
static uint32_t publish(struct pv_card *card, struct pv_split *ring)
{
	uint32_t place = ring->next_used % ring->size, wanted;
	uint32_t first = ring->count < ring->size - place ? ring->count : ring->size - place;
	uint64_t entries = ring->device + RING_HEADER;
	uint64_t spans[4] = { entries + USED_ENTRY * place, USED_ENTRY * first,
			      entries, USED_ENTRY * (ring->count - first) };
	uint16_t idx = (uint16_t)(ring->next_used + ring->count), event;

	if (ring->count) {
		if (!request(card, spans, ring->count > first ? 2 : 1, ring->entries, USED_ENTRY * ring->count, 1))
			return 0;
		__atomic_thread_fence(__ATOMIC_RELEASE);
		if (!write_at(card, ring->device + 2, &idx, sizeof(idx)))
			return 0;
		ring->next_used = idx;
		ring->untold += ring->count;
		ring->count = 0;
	}
	if (!ring->untold)
		return 1;
	/* The driver says what it wants before it looks at the index. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!read_at(card, ring->event_idx ? ring->driver + RING_HEADER + 2 * ring->size : ring->driver, &event,
		     sizeof(event)))
		return 0;
	if (ring->event_idx)
		wanted = ((ring->next_used - event - 1) & MASK) < ring->untold;
	else
		wanted = !(event & NO_INTERRUPT);
	ring->untold = 0;
	if (!wanted)
		return 1;
	if (ring->eventfd >= 0 && signal_eventfd(card, ring->eventfd))
		return 1;
	ring->interrupts++;
	return 0;
}

/* ---- frames (net/offload.py, net/reception.py) ---- */

static uint32_t word_at(const uint8_t *at)
{
	return at[0] | (uint32_t)at[1] << 8;
}

/*
 * Whether whoever gets the frame in the buffer takes it as it is, with what is left to do of it. A header that says
 * nothing that matters becomes all zeros.
 */
static uint32_t is_usual_header(struct pv_card *card, uint64_t length, uint32_t offloads)
{
	static const uint8_t plain[PV_NET_OFFLOADS];
	uint8_t *header = card->buffer;
	uint32_t flags = header[0], kind = header[1];

	if (!memcmp(header, plain, sizeof(plain)))
		return 1;
	if (flags & ~(NEEDS_CSUM | DATA_VALID))
		return 0;
	if (!(flags & NEEDS_CSUM)) {
		if (kind)
			return 0;
		memset(header, 0, PV_NET_OFFLOADS);
		return 1;
	}
	if (!(offloads & PV_CHECKSUM) || word_at(header + 6) + word_at(header + 8) + 2 > length)
		return 0;
	if (!kind)
		return 1;
	if (!word_at(header + 4))
		return 0;
	return kind == GSO_TCPV4 ? offloads & PV_SEGMENTS_4 : kind == GSO_TCPV6 && offloads & PV_SEGMENTS_6;
}

/* Whether the frame in the buffer is one for this card. */
static uint32_t is_accepted(const struct pv_card *card, uint64_t length)
{
	const uint8_t *frame = card->buffer + PV_NET_HEADER;
	uint32_t kind = (uint32_t)frame[12] << 8 | frame[13], tag = kind == 0x8100 || kind == 0x88A8;

	/* Segments are counted one by one. */
	if (!card->buffer[1] && length > card->longest + (tag ? 4 : 0))
		return 0;
	if (card->accepts & PV_EVERYTHING)
		return 1;
	if (tag && !(card->accepts & PV_TAGGED))
		return 0;
	if (!memcmp(frame, "\xff\xff\xff\xff\xff\xff", 6))
		return card->accepts & PV_BROADCAST;
	if (frame[0] & 1)
		return card->accepts & PV_MULTICAST;
	return card->accepts & PV_UNICAST && !memcmp(frame, card->mac, sizeof(card->mac));
}

static uint32_t unusual(struct pv_card *card)
{
	card->is_unusual = 1;
	return 0;
}

/* Make room for one more used buffer; 0 if that is Python's. */
static uint32_t has_room(struct pv_card *card, struct pv_split *ring, uint64_t more)
{
	return ring->count + more <= PV_ENTRY_COUNT || publish(card, ring) || unusual(card);
}

/* Send the next frame of the guest; 0 if there is none, or nothing more is to be done here. */
static uint32_t send_next(struct pv_card *card)
{
	struct pv_split *ring = &card->tx;
	enum look found = look(card, ring, 0);
	uint64_t size, length;
	uint32_t head;

	if (found != LOOK_FOUND)
		return found == LOOK_UNUSUAL ? unusual(card) : 0;
	card->count = 0;
	size = chain_at(card, ring, 0, 0, &head);
	if (size < PV_NET_HEADER + PV_LEAST_FRAME || size > PV_NET_HEADER + PV_MOST_FRAME)
		return unusual(card);
	if (!has_room(card, ring, 1) || !request(card, card->spans, card->count, card->buffer, size, 0))
		return unusual(card);
	length = size - PV_NET_HEADER;
	if (!is_usual_header(card, length, card->header_of_guest))
		return unusual(card);
	card->buffer[PV_NET_OFFLOADS] = card->buffer[PV_NET_OFFLOADS + 1] = 0;
	use(ring, head, 0);
	if (write(card->tap, card->buffer, size) < 0) {
		card->error = errno;
		return unusual(card);
	}
	card->sent++;
	card->sent_bytes += length;
	return 1;
}

/* Python is to have the frame in the buffer. */
static uint32_t hold(struct pv_card *card, uint64_t size)
{
	card->held = (uint32_t)size;
	return unusual(card);
}

/* Give the guest the next frame of the tap; 0 if there is none, or nothing more is to be done here. */
static uint32_t receive_next(struct pv_card *card)
{
	struct pv_split *ring = &card->rx;
	uint32_t heads[PV_ENTRY_COUNT], lengths[PV_ENTRY_COUNT], taken = 0;
	uint64_t size, left;
	enum look found;
	ssize_t got = read(card->tap, card->buffer, PV_FRAME_ROOM);

	card->is_empty = got < 0 && errno == EAGAIN;
	if (card->is_empty)
		return 0;
	if (got < 0)
		return unusual(card);
	size = left = (uint64_t)got;
	if (size < PV_NET_HEADER + PV_LEAST_FRAME || size > PV_NET_HEADER + PV_MOST_FRAME)
		return hold(card, size);
	if (!is_usual_header(card, size - PV_NET_HEADER, card->header_for_guest) ||
	    !is_accepted(card, size - PV_NET_HEADER))
		return hold(card, size);
	card->count = 0;
	while (left) {
		uint64_t there;

		found = taken < PV_ENTRY_COUNT && (card->merges || !taken) ? look(card, ring, taken) : LOOK_UNUSUAL;
		if (found != LOOK_FOUND)
			return hold(card, size);
		there = chain_at(card, ring, taken, 1, &heads[taken]);
		if (!there)
			return hold(card, size);
		if (there >= left) {	/* the last buffer: its spans are cut where the frame ends */
			uint64_t more = there - left;

			while (more >= card->spans[2 * card->count - 1])
				more -= card->spans[2 * card->count-- - 1];
			card->spans[2 * card->count - 1] -= more;
			there = left;
		}
		lengths[taken++] = (uint32_t)there;
		left -= there;
	}
	card->buffer[PV_NET_OFFLOADS] = (uint8_t)taken;
	card->buffer[PV_NET_OFFLOADS + 1] = 0;
	if (!has_room(card, ring, taken) || !request(card, card->spans, card->count, card->buffer, size, 1))
		return hold(card, size);
	for (uint32_t i = 0; i < taken; i++)
		use(ring, heads[i], lengths[i]);
	card->received++;
	card->received_bytes += size - PV_NET_HEADER;
	return 1;
}

/* ---- steps ---- */

/*
 * What is there, for about `budget_ns`. Returns how many frames. The guest is told of the first one that it receives at
 * once, of the others together, and of those that it has sent by finish().
 */
static uint32_t step(struct pv_card *card, uint64_t budget_ns)
{
	uint64_t began = now_ns(), received = card->received;
	uint32_t done = 0, before;

	pv_guard_install();
	do {
		before = done;
		for (uint32_t i = 0; i < 2 * TURN && !card->is_unusual; i++) {
			uint32_t is_to_send = i < TURN;

			if (!(is_to_send ? card->may_send : card->may_receive))
				continue;
			if (!(is_to_send ? send_next(card) : receive_next(card))) {
				i = is_to_send ? TURN - 1 : 2 * TURN;
				continue;
			}
			done++;
			if (now_ns() - began > budget_ns)
				goto over;
			if (!is_to_send && card->received == received + 1 && !publish(card, &card->rx))
				unusual(card);
		}
	} while (done != before && !card->is_unusual);
over:
	if (!publish(card, &card->rx))
		unusual(card);
	return done;
}

/* Tell the guest of what it has sent. */
static void finish(struct pv_card *card)
{
	if (!publish(card, &card->tx))
		unusual(card);
}

/* What is there for this card, for about `budget_ns`. Returns how many frames. */
PV_EXPORT uint32_t pv_card_step(struct pv_card *card, uint64_t budget_ns)
{
	uint32_t done = step(card, budget_ns);

	finish(card);
	return done;
}

/* Whether all that is ready is frames for these cards; *which says for which. */
static uint32_t is_theirs(struct pv_card **cards, uint64_t count, int epoll, uint64_t *which)
{
	struct epoll_event ready[MOST_EVENTS];
	int found = epoll_wait(epoll, ready, MOST_EVENTS, 0);

	*which = 0;
	if (found < 0 || found == MOST_EVENTS)
		return 0;
	for (int i = 0; i < found; i++) {
		uint64_t card = 0;

		while (card < count && !(cards[card]->may_receive && cards[card]->tap == ready[i].data.fd))
			card++;
		if (card == count || ready[i].events != EPOLLIN)
			return 0;
		*which |= 1ull << card;
	}
	return 1;
}

/*
 * The guest is likely to send something soon, an answer to what it has just received: look for that, and have it not
 * notify.
 */
static void expect_answer(struct pv_card *card)
{
	struct pv_split *ring = &card->tx;
	uint16_t past = (uint16_t)(ring->next_avail - 1), no_notify = 1;
	uint64_t event = ring->device + RING_HEADER + USED_ENTRY * ring->size;
	uint32_t done = ring->event_idx ? write_at(card, event, &past, sizeof(past)) :
					  write_at(card, ring->device, &no_notify, sizeof(no_notify));

	if (!done) {
		unusual(card);
		return;
	}
	card->may_expect = 0;
	card->may_send = 1;
	card->expected_at = now_ns();
	card->expected_after = ring->taken;
}

/* Whether an answer of its guest is still looked for. */
static uint32_t expects(const struct pv_card *card, uint64_t now)
{
	return card->expected_at && card->tx.taken == card->expected_after &&
	       now - card->expected_at < card->answer_ns;
}

static uint32_t cards_wait(struct pv_card **cards, uint64_t count, int epoll, int64_t timeout_ns, int64_t nap_ns,
			   int64_t short_ns, uint64_t budget_ns)
{
	struct pollfd one = { .fd = epoll, .events = POLLIN };
	uint64_t began = now_ns(), now = began, first = 0;
	uint32_t done = 0, is_last = 0;

	for (;;) {
		int64_t left = timeout_ns < 0 ? INT64_MAX : timeout_ns - (int64_t)(now - began);
		int64_t nap = first ? short_ns : nap_ns < 0 ? left : nap_ns;
		struct timespec time;
		uint32_t is_over = 0, is_expected = 0;
		uint64_t which = 0, woken;
		int ready;

		/* Whoever was woken last gets one more nap. More would keep those waiting who are not heard of. */
		if (left <= 0 && (!done || is_last))
			return first ? PV_DONE : PV_IN_VAIN;
		is_last = left <= 0;
		nap = left < nap && !done ? left : nap;
		time = (struct timespec){ nap / 1000000000, nap % 1000000000 };
		ready = ppoll(&one, 1, nap == INT64_MAX ? NULL : &time, NULL);
		woken = now_ns();
		if (ready < 0 || (ready && !is_theirs(cards, count, epoll, &which)))
			return PV_OTHER;
		/* After a stop of the process descriptors come first: the guest may have given the device up. */
		if (!ready && woken - now > (uint64_t)nap + STOPPED_NS)
			return PV_OTHER;
		for (uint64_t i = 0; done && i < count; i++)
			finish(cards[i]);
		done = 0;
		for (uint64_t i = 0; i < count; i++) {
			struct pv_card *card = cards[i];
			uint64_t received = card->received;

			if (!(which >> i & 1 || card->reads_tap || card->may_send))
				continue;
			done |= step(card, budget_ns) || card->is_unusual;
			if (card->received != received && card->may_expect && !card->is_unusual)
				expect_answer(card);
			is_over |= card->is_unusual;
			if (now_ns() - woken > STAY_NS)	/* the others will be ready again */
				break;
		}
		now = now_ns();
		for (uint64_t i = 0; i < count; i++)
			is_expected |= expects(cards[i], now);
		if (done && !first)
			first = now;
		if (first && (is_over || now - first > STAY_NS || !(done || is_expected)))
			return PV_DONE;
	}
}

/*
 * Sleep until a descriptor of `epoll` is ready, for at most `timeout_ns` (-1: no limit), and do what is there for these
 * cards, at most 64 of them, each for about `budget_ns`. What epoll does not tell of is looked at each `nap_ns` (-1:
 * never).
 *
 * Once something was done whoever was woken by that, QEMU or the other end of the tap, may need this very processor: so
 * it goes on with naps of `short_ns`, until one was in vain and no answer is expected any more, for STAY_NS in all.
 */
PV_EXPORT uint32_t pv_cards_wait(struct pv_card **cards, uint64_t count, int epoll, int64_t timeout_ns, int64_t nap_ns,
				 int64_t short_ns, uint64_t budget_ns)
{
	uint32_t end = cards_wait(cards, count, epoll, timeout_ns, nap_ns, short_ns, budget_ns);
	uint64_t now = now_ns();

	for (uint64_t i = 0; i < count; i++) {
		if (end != PV_OTHER)
			finish(cards[i]);
		if (cards[i]->expected_at)
			cards[i]->expected_for = now - cards[i]->expected_at;
	}
	return end;
}
