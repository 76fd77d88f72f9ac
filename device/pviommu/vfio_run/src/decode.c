/*
 * A decoder of x86-64 that knows MOV, between memory and a general register or from an immediate value, and MOVZX and
 * MOVSX to a register, by the tables of the Intel SDM, volume 2. Everything else is refused, so that nothing is done by
 * halves: other instructions, segments, LOCK and REP, 32-bit addresses.
 */
#include <string.h>

#include "decode.h"

#define OPERAND_SIZE 0x66
#define REX_W 8
#define REX_R 4
#define REX_X 2
#define REX_B 1
#define RSP 4
#define RBP 5

/* What is left of the instruction. */
struct bytes {
	const uint8_t *at, *end;
};

static int take(struct bytes *bytes, int size, int64_t *value)
{
	uint64_t found = 0;

	if (bytes->end - bytes->at < size)
		return 0;
	memcpy(&found, bytes->at, size);
	bytes->at += size;
	*value = (int64_t)(found << (64 - 8 * size)) >> (64 - 8 * size);
	return 1;
}

/* The address of an operand in memory, relative to the next instruction if that is what `is_relative` says then. */
static int find_address(struct bytes *bytes, int modrm, int rex, const uint64_t *registers, uint64_t *address,
			int *is_relative)
{
	int mode = modrm >> 6, base = modrm & 7, index;
	int64_t sib, displacement = 0;
	uint64_t found = 0;

	*is_relative = 0;
	if (mode == 3)
		return 0; /* a register */
	if (base == RSP) {
		if (!take(bytes, 1, &sib))
			return 0;
		base = sib & 7;
		index = (sib >> 3 & 7) | (rex & REX_X ? 8 : 0);
		if (index != RSP)
			found = registers[index] << (sib >> 6 & 3);
		if (base == RBP && !mode) {
			if (!take(bytes, 4, &displacement))
				return 0;
			*address = found + displacement;
			return 1;
		}
	} else if (base == RBP && !mode) {
		*is_relative = 1;
		if (!take(bytes, 4, &displacement))
			return 0;
		*address = displacement;
		return 1;
	}
	if (mode && !take(bytes, mode == 1 ? 1 : 4, &displacement))
		return 0;
	*address = found + registers[base | (rex & REX_B ? 8 : 0)] + displacement;
	return 1;
}

int decode(const uint8_t *code, int count, const uint64_t *registers, struct access *access)
{
	struct bytes bytes = { code, code + (count < MOST_BYTES ? count : MOST_BYTES) };
	int has_16 = 0, rex = 0, wide, is_relative, is_immediate = 0;
	int64_t opcode, modrm, immediate;

	memset(access, 0, sizeof(*access));
	do
		if (!take(&bytes, 1, &opcode))
			return 0;
	while ((opcode & 0xff) == OPERAND_SIZE && (has_16 = 1));
	if ((opcode & 0xf0) == 0x40) {
		rex = opcode & 0xf;
		access->is_high = -1; /* there is no AH with REX */
		if (!take(&bytes, 1, &opcode))
			return 0;
	}
	wide = rex & REX_W ? 8 : has_16 ? 2 : 4;
	access->width = access->size = wide;
	switch (opcode & 0xff) {
	case 0x88:
		access->width = access->size = 1;
		/* fall through */
	case 0x89:
		access->writes = 1;
		break;
	case 0x8a:
		access->width = access->size = 1;
		break;
	case 0x8b:
		break;
	case 0xc6:
		access->size = 1;
		/* fall through */
	case 0xc7:
		access->writes = is_immediate = 1;
		break;
	case 0x0f: /* MOVZX, MOVSX */
		if (!take(&bytes, 1, &opcode) || (opcode & 0xf6) != 0xb6)
			return 0;
		access->size = opcode & 1 ? 2 : 1;
		access->is_signed = !!(opcode & 8);
		break;
	case 0x63: /* MOVSX from 4 bytes */
		if (wide != 8)
			return 0;
		access->size = 4;
		access->is_signed = 1;
		break;
	default:
		return 0;
	}
	if (!take(&bytes, 1, &modrm) || !find_address(&bytes, modrm & 0xff, rex, registers, &access->address, &is_relative))
		return 0;
	access->target = (modrm >> 3 & 7) | (rex & REX_R ? 8 : 0);
	if (is_immediate) {
		if (modrm >> 3 & 7 || !take(&bytes, access->size < 4 ? access->size : 4, &immediate))
			return 0;
		access->immediate = immediate;
		access->target = -1;
	}
	access->is_high = !access->is_high && !is_immediate && access->width == 1 && access->target >= 4;
	if (access->is_high)
		access->target -= 4;
	access->length = bytes.at - code;
	if (is_relative)
		access->address += registers[RIP] + access->length;
	return 1;
}
