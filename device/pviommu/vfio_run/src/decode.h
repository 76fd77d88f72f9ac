/* Instructions that move a register of a device: what compilers make of volatile accesses. See decode.c. */
#ifndef DECODE_H
#define DECODE_H

#include <stdint.h>

#define MOST_BYTES 15 /* of an instruction */
#define RIP 16 /* behind the sixteen registers, in the order of their numbers in instructions */

/* What an instruction does with memory. */
struct access {
	int length; /* of the instruction, in bytes */
	int size; /* of the memory, in bytes: 1, 2, 4 or 8 */
	int writes;
	int target; /* register that is read into, or written from; -1: what is written is the immediate value */
	int is_high; /* it is the second byte of that register: AH, CH, DH, BH */
	int width; /* bytes of the target that change; 4 clears those above */
	uint64_t immediate, address;
	int is_signed; /* what is read is extended by its sign */
};

/* Whether the bytes are such an instruction. `registers` are as they are before it. */
int decode(const uint8_t *code, int count, const uint64_t *registers, struct access *access);

#endif
