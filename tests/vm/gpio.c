/*
 * In the guest: outputs of the card of libvfio_user/gpio.py are its inputs, and a rising input interrupts.
 * By Linux' own interface, see linux/comedi.h. Prints a line for each thing that it has seen.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/comedi.h>

enum { INPUTS = 0, OUTPUTS = 1, INTERRUPT_1 = 3 };

static int bits(int card, unsigned int subdevice, unsigned int mask, unsigned int value, unsigned int *got)
{
	unsigned int data[2] = { mask, value };
	struct comedi_insn insn = { .insn = INSN_BITS, .n = 2, .data = data, .subdev = subdevice };
	int result = ioctl(card, COMEDI_INSN, &insn);

	*got = data[1];
	return result;
}

int main(void)
{
	unsigned int got = 0, chanlist = 0;
	unsigned short sample = 0;
	struct comedi_cmd cmd = {
		.subdev = INTERRUPT_1,
		.start_src = TRIG_NOW,
		.scan_begin_src = TRIG_EXT,
		.convert_src = TRIG_FOLLOW,
		.scan_end_src = TRIG_COUNT,
		.scan_end_arg = 1,
		.stop_src = TRIG_NONE,
		.chanlist = &chanlist,
		.chanlist_len = 1,
	};
	int card = open("/dev/comedi0", O_RDWR);

	if (card < 0) {
		perror("gpio: /dev/comedi0");
		return 1;
	}
	if (bits(card, OUTPUTS, 0xffff, 0xa5a1, &got) < 0 || bits(card, INPUTS, 0, 0, &got) < 0)
		perror("gpio: bits");
	printf("gpio: inputs %#x\n", got);
	if (ioctl(card, COMEDI_CMD, &cmd) < 0)
		perror("gpio: command");
	if (bits(card, OUTPUTS, 2, 2, &got) < 0)
		perror("gpio: bits");
	alarm(20);
	if (read(card, &sample, sizeof(sample)) != sizeof(sample))
		perror("gpio: read");
	printf("gpio: interrupt with inputs %#x\n", sample);
	return 0;
}
