// SPDX-License-Identifier: MIT
/* See commands.h. Whatever is illegal, cannot be read or is not declared is left to Python, which tells what there is to tell. */

#include <string.h>

#include "commands.h"

/* Copy between guest memory and a buffer; 0 if it is not there, or went away. */
static int move(const struct pv_commands *self, uint64_t at, void *buffer, uint64_t size, uint64_t access)
{
	uint32_t refusal;
	uint8_t *host = pv_place_at(&self->place, at, size, access, &refusal);
	uint8_t *to = access == PV_WRITE ? host : buffer, *from = access == PV_WRITE ? buffer : host;

	if (!host)
		return 0;
	if (pv_memory_may_vanish(self->place.memory))
		return pv_copy(to, from, size) == size;
	memcpy(to, from, size);
	return 1;
}

/* The first and the last byte that a command is about; 0 if it is illegal. */
static int pages_of(const struct pv_commands *self, const uint64_t *words, uint64_t *first, uint64_t *last)
{
	uint64_t granule = pv_field(words, &self->granule), number = pv_field(words, &self->number);
	uint64_t scale = pv_field(words, &self->scale), level = pv_field(words, &self->level), shift, size;

	*first = *last = words[1] & self->address;
	if (!granule)
		return 1;
	if (!number && !scale && !(self->levels >> (granule << self->level_bits | level) & 1))
		return 0;
	shift = scale + 2 * granule + self->page_shift;
	size = shift < 64 ? (number + 1) << shift : 0;
	if (!size || size >> shift != number + 1 || size - 1 > UINT64_MAX - *first)
		*last = UINT64_MAX;
	else
		*last = *first + (size - 1);
	return 1;
}

static void forget(const struct pv_commands *self, const struct pv_command *command, const uint64_t *words,
		   uint64_t first, uint64_t last)
{
	uint64_t guest = pv_field(words, &self->guest) << self->guest_shift, mask = UINT64_MAX;
	uint64_t one = guest | pv_field(words, &self->space), other = guest | self->every;

	if (command->scope == PV_OF_GUEST) {
		mask <<= self->guest_shift;
		one = other = guest;
	} else if (command->scope == PV_OF_SPACE) {
		other = one;
	} else if (command->scope == PV_OF_EVERY) {
		one = other;
	}
	for (uint32_t stage = 0; stage < 2; stage++)
		if (command->stages >> stage & 1)
			pv_tlb_drop(self->tlbs[stage], first, last, mask, one, other);
}

/* Tell that everything before is complete. Returns 0 if that is Python's to tell, and then nothing is done. */
static int sync(const struct pv_commands *self, const uint64_t *words, uint32_t *is_told)
{
	uint64_t completion = pv_field(words, &self->completion), at = words[1] & self->signal_address;
	uint32_t value = (uint32_t)pv_field(words, &self->signal);

	*is_told = 1;
	if (self->silent >> completion & 1)
		return 1;
	if (completion != self->told)
		return 0;
	if (at)
		return move(self, at, &value, sizeof(value), PV_WRITE);
	*is_told = 0;
	return 1;
}

static uint64_t looked_at(const struct pv_commands *self)
{
	return pv_tlb_looked_at(self->tlbs[0]) + pv_tlb_looked_at(self->tlbs[1]);
}

/* Carry out the commands at `at`, one after the other, up to `count`, or as far as they are of this kind. */
PV_EXPORT uint64_t pv_commands_run(const struct pv_commands *self, uint64_t at, uint64_t count)
{
	uint64_t words[PV_COMMAND_WORDS], first, last, most = looked_at(self) + self->most_looked_at;

	if (pv_memory_may_vanish(self->place.memory))
		pv_guard_install();
	for (uint64_t done = 0; done < count; done++, at += sizeof(words)) {
		const struct pv_command *command;
		uint32_t is_told = 1;

		if (!move(self, at, words, sizeof(words), PV_READ))
			return done << 2;
		command = &self->commands[pv_field(words, &self->opcode) % PV_OPCODES];
		switch (command->effect) {
		case PV_FORGET:
			forget(self, command, words, 0, UINT64_MAX);
			break;
		case PV_FORGET_PAGES:
			if (!pages_of(self, words, &first, &last))
				return done << 2;
			forget(self, command, words, first, last);
			break;
		case PV_CLEAR:
			for (uint32_t stage = 0; stage < 2; stage++)
				if (command->stages >> stage & 1)
					pv_tlb_clear(self->tlbs[stage]);
			break;
		case PV_SYNC:
			if (!sync(self, words, &is_told))
				return done << 2;
			break;
		default:
			return done << 2;
		}
		if (!is_told)
			return (done + 1) << 2 | PV_COMMANDS_TELL;
		if (looked_at(self) > most)
			return (done + 1) << 2 | PV_COMMANDS_TIRED;
	}
	return count << 2;
}
