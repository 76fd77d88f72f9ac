// SPDX-License-Identifier: MIT
/*
 * Translations of one stage that are remembered: interfaces/smmuv3/caches.py. Of a bounded number; what has been there
 * longest makes room. Those of a tag are linked, so that forgetting some of them takes no look at the others.
 */

#include <stdlib.h>

#include "walk.h"

/* Entries are numbered from 1 on; 0 is none. */
struct entry {
	uint64_t tag;
	uint64_t number;	/* the address without its lowest `shift` bits */
	uint64_t output;
	uint32_t shift;
	uint32_t access;
	uint32_t next;		/* in the bucket, or of those that are free */
	uint32_t older;
	uint32_t newer;
	uint32_t group;
	uint32_t before;	/* in the group */
	uint32_t after;
};

/* The entries of a tag, one at least. Groups are numbered as entries are. */
struct group {
	uint64_t tag;
	uint32_t count;
	uint32_t first;
	uint32_t next;		/* in the bucket, or of those that are free */
	uint32_t before;
	uint32_t after;
};

/* Python reads the first two fields. */
struct pv_tlb {
	uint64_t count;
	uint64_t looked_at;	/* entries that were looked at to find those to be forgotten, ever */
	uint64_t limit;
	uint64_t shifts;	/* a bit for each shift of an entry since the last pv_tlb_clear() */
	uint64_t factors[3];	/* of the hash: nobody else knows them */
	uint32_t bucket_bits;
	uint32_t oldest;
	uint32_t newest;
	uint32_t released;	/* the first entry that was used and is free */
	uint32_t used;		/* entries that were used */
	uint32_t group;		/* the first one */
	uint32_t released_group;
	uint32_t used_groups;
	uint32_t *buckets;
	uint32_t *group_buckets;
	struct entry *entries;
	struct group *groups;
};

PV_EXPORT void pv_tlb_destroy(struct pv_tlb *tlb)
{
	free(tlb->buckets);
	free(tlb->group_buckets);
	free(tlb->entries);
	free(tlb->groups);
	free(tlb);
}

/* For at most `limit` translations; `seed` is a random number. NULL without memory. */
PV_EXPORT struct pv_tlb *pv_tlb_create(uint32_t limit, uint64_t seed)
{
	struct pv_tlb *tlb = calloc(1, sizeof(*tlb));

	if (!tlb)
		return NULL;
	tlb->limit = limit;
	tlb->bucket_bits = 1;
	while (1ull << tlb->bucket_bits < limit)
		tlb->bucket_bits++;
	for (uint32_t i = 0; i < 3; i++)
		tlb->factors[i] = (seed << 21 * i | seed >> (64 - 21 * i) % 64) | 1;
	/* Memory that calloc() has not touched costs nothing until an entry comes there. */
	tlb->buckets = calloc(1ull << tlb->bucket_bits, sizeof(*tlb->buckets));
	tlb->group_buckets = calloc(1ull << tlb->bucket_bits, sizeof(*tlb->group_buckets));
	tlb->entries = calloc((size_t)limit + 1, sizeof(*tlb->entries));
	tlb->groups = calloc((size_t)limit + 1, sizeof(*tlb->groups));
	if (!tlb->buckets || !tlb->group_buckets || !tlb->entries || !tlb->groups) {
		pv_tlb_destroy(tlb);
		return NULL;
	}
	return tlb;
}

static uint32_t *bucket_of(const struct pv_tlb *tlb, uint64_t tag, uint32_t shift, uint64_t number)
{
	uint64_t hash = number * tlb->factors[0] + tag * tlb->factors[1] + shift * tlb->factors[2];

	return &tlb->buckets[hash >> (64 - tlb->bucket_bits)];
}

static uint32_t entry_of(const struct pv_tlb *tlb, uint64_t tag, uint32_t shift, uint64_t number)
{
	uint32_t at = *bucket_of(tlb, tag, shift, number);

	while (at) {
		const struct entry *entry = &tlb->entries[at];

		if (entry->number == number && entry->tag == tag && entry->shift == shift)
			break;
		at = entry->next;
	}
	return at;
}

static uint32_t *group_bucket_of(const struct pv_tlb *tlb, uint64_t tag)
{
	return &tlb->group_buckets[tag * tlb->factors[1] >> (64 - tlb->bucket_bits)];
}

/* 0: nothing has this tag. */
static uint32_t group_of(const struct pv_tlb *tlb, uint64_t tag)
{
	uint32_t at = *group_bucket_of(tlb, tag);

	while (at && tlb->groups[at].tag != tag)
		at = tlb->groups[at].next;
	return at;
}

static void join_group(struct pv_tlb *tlb, uint32_t at)
{
	struct entry *entry = &tlb->entries[at];
	uint32_t number = group_of(tlb, entry->tag), *bucket;
	struct group *group;

	if (!number) {
		number = tlb->released_group;
		if (number)
			tlb->released_group = tlb->groups[number].next;
		else
			number = ++tlb->used_groups;
		bucket = group_bucket_of(tlb, entry->tag);
		tlb->groups[number] = (struct group){ .tag = entry->tag, .next = *bucket, .after = tlb->group };
		*bucket = number;
		if (tlb->group)
			tlb->groups[tlb->group].before = number;
		tlb->group = number;
	}
	group = &tlb->groups[number];
	entry->group = number;
	entry->after = group->first;
	if (group->first)
		tlb->entries[group->first].before = at;
	group->first = at;
	group->count++;
}

static void leave_group(struct pv_tlb *tlb, uint32_t at)
{
	struct entry *entry = &tlb->entries[at];
	uint32_t number = entry->group, *link;
	struct group *group = &tlb->groups[number];

	*(entry->before ? &tlb->entries[entry->before].after : &group->first) = entry->after;
	if (entry->after)
		tlb->entries[entry->after].before = entry->before;
	if (--group->count)
		return;
	link = group_bucket_of(tlb, group->tag);
	while (*link != number)
		link = &tlb->groups[*link].next;
	*link = group->next;
	*(group->before ? &tlb->groups[group->before].after : &tlb->group) = group->after;
	if (group->after)
		tlb->groups[group->after].before = group->before;
	group->next = tlb->released_group;
	tlb->released_group = number;
}

static void forget(struct pv_tlb *tlb, uint32_t at)
{
	struct entry *entry = &tlb->entries[at];
	uint32_t *link = bucket_of(tlb, entry->tag, entry->shift, entry->number);

	while (*link != at)
		link = &tlb->entries[*link].next;
	*link = entry->next;
	*(entry->older ? &tlb->entries[entry->older].newer : &tlb->oldest) = entry->newer;
	*(entry->newer ? &tlb->entries[entry->newer].older : &tlb->newest) = entry->older;
	leave_group(tlb, at);
	entry->next = tlb->released;
	tlb->released = at;
	tlb->count--;
}

/*
 * The translation of an address with this tag or with `every`, if it allows this access: a refusal has to come from
 * memory. Of several the smallest.
 */
PV_EXPORT int pv_tlb_find(const struct pv_tlb *tlb, uint64_t tag, uint64_t every, uint64_t address, uint32_t access,
			  struct pv_translation *found)
{
	for (uint64_t shifts = tlb->shifts; shifts; shifts &= shifts - 1) {
		uint32_t shift = (uint32_t)__builtin_ctzll(shifts);

		for (uint32_t turn = 0; turn < (tag == every ? 1u : 2u); turn++) {
			uint32_t at = entry_of(tlb, turn ? every : tag, shift, address >> shift);
			const struct entry *entry = &tlb->entries[at];

			if (!at || access & ~entry->access)
				continue;
			found->output = entry->output | (address & ((1ull << shift) - 1));
			found->shift = shift;
			found->access = entry->access;
			return 1;
		}
	}
	return 0;
}

/* Remember a leaf that was found for `address`. Contiguous ones are one entry if their outputs can be. */
PV_EXPORT void pv_tlb_add(struct pv_tlb *tlb, uint64_t tag, uint64_t address, const struct pv_walked *leaf)
{
	uint32_t shift = leaf->contiguous, at;
	uint64_t mask = (1ull << shift) - 1;
	struct entry *entry;
	uint32_t *bucket;

	if ((leaf->output ^ address) & mask) {
		shift = leaf->shift;
		mask = (1ull << shift) - 1;
	}
	tlb->shifts |= 1ull << shift;
	if (!tlb->limit)
		return;
	at = entry_of(tlb, tag, shift, address >> shift);
	if (at)
		forget(tlb, at);
	if (tlb->count >= tlb->limit)
		forget(tlb, tlb->oldest);
	at = tlb->released;
	if (at)
		tlb->released = tlb->entries[at].next;
	else
		at = ++tlb->used;
	bucket = bucket_of(tlb, tag, shift, address >> shift);
	entry = &tlb->entries[at];
	*entry = (struct entry){
		.tag = tag,
		.number = address >> shift,
		.output = leaf->output & ~mask,
		.shift = shift,
		.access = leaf->access,
		.next = *bucket,
		.older = tlb->newest,
	};
	*bucket = at;
	*(tlb->newest ? &tlb->entries[tlb->newest].newer : &tlb->oldest) = at;
	tlb->newest = at;
	join_group(tlb, at);
	tlb->count++;
}

/* Whether the addresses from `first` to `last` are in fewer blocks, of the sizes that there are, than the group has entries. */
static int has_few_blocks(const struct pv_tlb *tlb, uint32_t count, uint64_t first, uint64_t last)
{
	uint64_t left = count;

	for (uint64_t shifts = tlb->shifts; shifts; shifts &= shifts - 1) {
		uint32_t shift = (uint32_t)__builtin_ctzll(shifts);
		uint64_t further = (last >> shift) - (first >> shift);

		if (further >= left)
			return 0;
		left -= further + 1;
	}
	return 1;
}

/* Forget what translates any of these bytes, of one group. */
static void drop_of_group(struct pv_tlb *tlb, uint32_t number, uint64_t first, uint64_t last)
{
	uint64_t tag = tlb->groups[number].tag;
	uint32_t next;

	if (has_few_blocks(tlb, tlb->groups[number].count, first, last)) {
		for (uint64_t shifts = tlb->shifts; shifts; shifts &= shifts - 1) {
			uint32_t shift = (uint32_t)__builtin_ctzll(shifts);

			for (uint64_t block = first >> shift; block <= last >> shift; block++) {
				uint32_t at = entry_of(tlb, tag, shift, block);

				tlb->looked_at++;
				if (at)
					forget(tlb, at);
			}
		}
		return;
	}
	for (uint32_t at = tlb->groups[number].first; at; at = next) {
		const struct entry *entry = &tlb->entries[at];
		uint64_t begin = entry->number << entry->shift;

		next = entry->after;
		tlb->looked_at++;
		if (begin <= last && first <= begin + ((1ull << entry->shift) - 1))
			forget(tlb, at);
	}
}

/*
 * Forget what translates any of the bytes from `first` to `last` (inclusive), of the tags whose bits `mask` are `one`
 * or `other`.
 */
PV_EXPORT void pv_tlb_drop(struct pv_tlb *tlb, uint64_t first, uint64_t last, uint64_t mask, uint64_t one,
			   uint64_t other)
{
	uint32_t number, next;

	if (mask == UINT64_MAX) {
		number = group_of(tlb, one);
		if (number)
			drop_of_group(tlb, number, first, last);
		number = one == other ? 0 : group_of(tlb, other);
		if (number)
			drop_of_group(tlb, number, first, last);
		return;
	}
	for (number = tlb->group; number; number = next) {
		uint64_t tag = tlb->groups[number].tag & mask;

		next = tlb->groups[number].after;
		tlb->looked_at++;
		if (tag == one || tag == other)
			drop_of_group(tlb, number, first, last);
	}
}

uint64_t pv_tlb_looked_at(const struct pv_tlb *tlb)
{
	return tlb->looked_at;
}

/* Forget everything. */
PV_EXPORT void pv_tlb_clear(struct pv_tlb *tlb)
{
	while (tlb->oldest)
		forget(tlb, tlb->oldest);
	tlb->shifts = 0;
}
