/* SPDX-License-Identifier: MIT */
/*
 * What a network card with a tap and split rings does most of the time: endpoints/virtio_net.py and virtio/split.py in
 * C. Python fills in a `struct pv_card` before each call, and goes on from what it holds afterwards.
 */
#ifndef PVIOMMU_VIRTIO_H
#define PVIOMMU_VIRTIO_H

#include "core.h"

#define PV_CHAIN	256u	/* descriptors of a buffer, at most: MAX_CHAIN */
#define PV_ENTRY_COUNT	64u	/* used buffers that the driver is told of at once */
#define PV_PIECES	(2u * PV_CHAIN)	/* runs of memory of a request, at most */
#define PV_NET_HEADER	12u	/* bytes before a frame; the last two are the number of buffers */
#define PV_NET_OFFLOADS	10u	/* those of them that say what is left to do of the frame */
#define PV_LEAST_FRAME	14u
#define PV_MOST_FRAME	(PV_LEAST_FRAME + 8 + 0xFFFF)
#define PV_FRAME_ROOM	(PV_NET_HEADER + (64 << 10) + 64)

/* The DMA of one stream. */
struct pv_port {
	const struct pv_core *core;
	const struct pv_memory *memory;
	uint32_t *line;		/* the in-flight word that the guest sees; NULL: the device's own tables */
	uint32_t *step;		/* its value, which nobody else writes */
	uint64_t requests;	/* that were carried out... */
	uint64_t bytes;		/* ... and what they moved */
	uint32_t ctx;
};

struct pv_used {
	uint32_t id;
	uint32_t written;
};

/* One split ring. Indices count to 65535. */
struct pv_split {
	uint64_t desc;
	uint64_t driver;
	uint64_t device;
	uint32_t size;		/* a power of two */
	uint32_t event_idx;	/* whether that is negotiated, ... */
	uint32_t indirect;	/* ... and that */
	uint32_t next_avail;
	uint32_t next_used;
	uint32_t count;		/* of entries: used buffers that are not in the ring yet */
	uint32_t untold;	/* that are, without a decision whether that needs an interrupt */
	uint32_t taken;		/* how many were used */
	uint32_t there;		/* how many are available, as of the last look */
	uint32_t is_dry;	/* the last look found no buffer */
	uint32_t interrupts;	/* that the driver is to get, and has not got */
	int32_t eventfd;	/* for them; -1: Python raises them */
	struct pv_used entries[PV_ENTRY_COUNT];
};

struct pv_card {
	struct pv_port port;
	struct pv_split rx;
	struct pv_split tx;
	uint64_t sent;
	uint64_t sent_bytes;
	uint64_t received;
	uint64_t received_bytes;
	uint64_t interrupts;	/* that were raised here */
	uint64_t signals;	/* context of asynchronous I/O, whose completions raise them */
	uint32_t *completed;	/* how many of those nobody has taken yet */
	uint32_t may_send;	/* whether the transmit ring may be looked at... */
	uint32_t may_receive;	/* ... and the tap */
	uint32_t reads_tap;	/* which epoll does not tell of */
	uint32_t merges;	/* a frame may take several buffers */
	uint32_t header_of_guest;	/* enum pv_offloads that frames from the guest may need */
	uint32_t header_for_guest;	/* the same for those that it receives */
	uint32_t accepts;	/* enum pv_accepts */
	uint32_t longest;	/* frame without a tag, bytes */
	int32_t tap;
	int32_t error;		/* errno of a frame that the tap did not take */
	uint32_t held;		/* bytes in `buffer` that were read from the tap and are for Python; 0: none */
	uint32_t is_unusual;	/* there is something for Python to do */
	uint32_t is_empty;	/* the last look at the tap found no frame */
	uint32_t may_expect;	/* an answer to what the guest receives, of which it would notify... */
	uint64_t answer_ns;	/* ... and for how long */
	uint64_t expected_at;	/* when that began; 0: it has not */
	uint64_t expected_for;	/* how long it has been looked for when Python goes on */
	uint32_t expected_after;	/* buffers that had been taken then */
	uint8_t mac[6];
	uint8_t buffer[PV_FRAME_ROOM];
	uint64_t count;		/* of spans */
	uint64_t spans[2 * PV_PIECES];	/* of the buffers that are looked at, all of one kind */
	uint64_t runs[2 * PV_PIECES];
	uint8_t table[16 * PV_CHAIN];
};

enum pv_offloads {
	PV_CHECKSUM = 1,
	PV_SEGMENTS_4 = 2,
	PV_SEGMENTS_6 = 4,
};

enum pv_accepts {
	PV_EVERYTHING = 1,
	PV_UNICAST = 2,		/* to the card's own address */
	PV_BROADCAST = 4,
	PV_MULTICAST = 8,	/* all of it */
	PV_TAGGED = 16,		/* whatever the VLAN */
};

enum pv_waited {
	PV_IN_VAIN,	/* the time is over */
	PV_DONE,	/* cards have done something, or there is something for Python */
	PV_OTHER,	/* a descriptor of somebody else is ready, or a signal has come */
};

uint32_t pv_card_step(struct pv_card *card, uint64_t budget_ns);
uint32_t pv_cards_wait(struct pv_card **cards, uint64_t count, int epoll, int64_t timeout_ns, int64_t nap_ns,
		       int64_t short_ns, uint64_t budget_ns);

#endif
