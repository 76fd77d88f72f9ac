/* SPDX-License-Identifier: MIT */
/*
 * Commands of an SMMU's queue that only forget translations or wait for that: interfaces/smmuv3/commands.py in C. Which
 * those are, and where their fields lie, is data, as interfaces/smmuv3/command_table.py declares it.
 */
#ifndef PVIOMMU_COMMANDS_H
#define PVIOMMU_COMMANDS_H

#include "walk.h"

#define PV_COMMAND_WORDS 2
#define PV_OPCODES	256

enum pv_effect {
	PV_LEFT,	/* to Python */
	PV_FORGET,	/* what translates anything */
	PV_FORGET_PAGES, /* what translates an address, or a range of pages */
	PV_CLEAR,	/* all there is */
	PV_SYNC,
};

/* Whose translations: those of ... */
enum pv_scope {
	PV_OF_SPACE,		/* one address space */
	PV_OF_SPACE_OR_EVERY,	/* one, and what is of every one of the guest */
	PV_OF_EVERY,		/* the latter alone */
	PV_OF_GUEST,		/* all address spaces of the guest */
};

struct pv_command {
	uint32_t effect;
	uint32_t scope;
	uint32_t stages;	/* a bit for each */
};

/* Python fills it in. */
struct pv_commands {
	struct pv_place place;		/* of the queue, and of what is written */
	struct pv_tlb *tlbs[2];		/* by stage */
	struct pv_command commands[PV_OPCODES];
	struct pv_field opcode;
	struct pv_field guest;
	struct pv_field space;
	struct pv_field number;		/* of pages, less one... */
	struct pv_field scale;		/* ... times a power of two */
	struct pv_field granule;	/* 0: an address, no range */
	struct pv_field level;
	struct pv_field completion;
	struct pv_field signal;		/* what is written when a sync is complete ... */
	uint64_t signal_address;	/* ... where these bits of the second word say; 0: nowhere */
	uint64_t address;		/* bits of the second word */
	uint64_t levels;		/* by granule and level: those that a range of one page may have */
	uint64_t silent;		/* a bit for each completion that nobody is told of */
	uint32_t level_bits;
	uint32_t page_shift;		/* of granule 0; each further one doubles it twice */
	uint32_t told;			/* the completion that is told by what is written, or else by Python */
	uint32_t guest_shift;		/* tags are a guest's number there, and an address space or this: */
	uint32_t every;
	uint64_t most_looked_at;	/* entries, in a call */
};

/* The result of pv_commands_run(): how many were carried out, times four, and these. */
enum pv_commands_end {
	PV_COMMANDS_TELL = 1,	/* the last one is complete, which Python is to tell */
	PV_COMMANDS_TIRED = 2,	/* enough was looked at */
};

uint64_t pv_commands_run(const struct pv_commands *self, uint64_t at, uint64_t count);

#endif
