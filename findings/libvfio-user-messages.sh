#!/bin/sh
# libvfio-user of 2022, as Debian 13 has it in the source of QEMU (1:10.0.13+ds-0+deb13u1): what its server does with
# messages that keep to the protocol.
#
# Expected: as docs/interop/vfio-user.rst in the same source says: an error reply is a header alone; the capabilities of a
#           reply to VERSION are among those proposed; a write of as many bytes as the server announced is served; vectors
#           that are given no eventfd any more have none.
# Seen:     an access that the device refuses is answered with the access and its bytes after the header, and an access of
#           nothing with neither. The reply to VERSION names what was not proposed. 1048576 bytes are announced, and a write of 250000 is
#           refused, because the library takes what its socket hands over at once for all of it; the rest is then taken
#           for headers, so the connection is of no more use. One of 32 KiB always arrives. Taking vector 1 away succeeds,
#           and it still signals; taking all away at once is obeyed.
#
# Needs gcc, python3 and a Debian whose mirror has that version. Exit status 0: as seen.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN)' 'Created-By: Packages' |
	awk '/ Debian$/ && !/security/ { print $1; exit }')
echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >sources.list
mkdir -p lists/partial
for verb in update "source --download-only qemu=1:10.0.13+ds-0+deb13u1"; do
	# shellcheck disable=SC2086
	apt-get -qq -o Dir::Etc::sourcelist="$folder/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$folder/lists" \
		-o APT::Sandbox::User=root $verb
done
tar -xJf qemu_*.orig.tar.xz --strip-components=2 --wildcards '*/subprojects/libvfio-user/*'
apt-get -qq -o APT::Sandbox::User=root download libjson-c-dev libjson-c5
for package in libjson-c*.deb; do dpkg-deb -x "$package" .; done
cat >device.c <<'C'
#include <errno.h>
#include <libvfio-user.h>

static ssize_t bar0(vfu_ctx_t *ctx, char *data, size_t count, loff_t offset, bool is_write)
{
	if (is_write && offset == 0x10)
		vfu_irq_trigger(ctx, data[0]);
	errno = EPERM;
	return offset == 0x20 ? -1 : (ssize_t)count;
}

int main(int argc, char **argv)
{
	vfu_ctx_t *ctx = vfu_create_ctx(VFU_TRANS_SOCK, argv[argc - 1], 0, NULL, VFU_DEV_TYPE_PCI);

	vfu_pci_init(ctx, VFU_PCI_TYPE_CONVENTIONAL, PCI_HEADER_TYPE_NORMAL, 0);
	vfu_setup_region(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, 1 << 20, bar0, VFU_REGION_FLAG_RW, NULL, 0, -1, 0);
	vfu_setup_device_nr_irqs(ctx, VFU_DEV_MSIX_IRQ, 2);
	vfu_realize_ctx(ctx);
	while (!vfu_attach_ctx(ctx))
		while (vfu_run_ctx(ctx) >= 0)
			;
	return 1;
}
C
set -- $(ls libvfio-user/lib/*.c | grep -v tran_pipe)
gcc -std=gnu99 -D_GNU_SOURCE -Ilibvfio-user/include -Ilibvfio-user/lib -Iusr/include/json-c -o device device.c "$@" \
	usr/lib/*/libjson-c.a
cat >client.py <<'PYTHON'
import json
import os
import socket
import struct
import subprocess
import sys
import time

VERSION, SET_IRQS, READ, WRITE, EINVAL = 1, 8, 9, 10, 22
MSIX, NONE, EVENTFD, TRIGGER = 2, 1, 4, 32


def ask(sock, command, payload, fds=()):
    """The error and the payload of the reply."""
    socket.send_fds(sock, [struct.pack("<HHIII", 7, command, 16 + len(payload), 0, 0) + payload], fds)
    _, _, size, _, error = struct.unpack("<HHIII", sock.recv(16))
    return error, sock.recv(size - 16, socket.MSG_WAITALL) if size > 16 else b""


def connected():
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect("socket")
    return sock, json.loads(ask(sock, VERSION, struct.pack("<HH", 0, 1))[1][4:-1])["capabilities"]


def access(offset, count):
    return struct.pack("<QII", offset, 0, count)


def signalled(sock, vector, event):
    ask(sock, WRITE, access(0x10, 1) + bytes([vector]))
    try:
        return os.eventfd_read(event) > 0
    except BlockingIOError:
        return False


server = subprocess.Popen(["./device", "socket"], stderr=subprocess.DEVNULL)
try:
    while not os.path.exists("socket"):
        time.sleep(0.01)
    time.sleep(0.2)
    sock, told = connected()
    print("named without a proposal:", *sorted(told))
    print("refused access, bytes after the header:", len(ask(sock, READ, access(0x20, 4))[1]))
    print("access of nothing, bytes after the header:", len(ask(sock, READ, access(0, 0))[1]))
    events = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    ask(sock, SET_IRQS, struct.pack("<IIIII", 20, EVENTFD | TRIGGER, MSIX, 0, 2), events)
    taken = ask(sock, SET_IRQS, struct.pack("<IIIII", 20, EVENTFD | TRIGGER, MSIX, 1, 1))[0]
    print("vector 1 taken away: error", taken, "signals", signalled(sock, 1, events[1]))
    taken = ask(sock, SET_IRQS, struct.pack("<IIIII", 20, NONE | TRIGGER, MSIX, 0, 0))[0]
    print("all taken away: error", taken, "signals", signalled(sock, 0, events[0]))
    print("write of 32768: error", ask(sock, WRITE, access(0, 32768) + bytes(32768))[0])
    print("announced:", told["max_data_xfer_size"])
    print("write of 250000: error", ask(sock, WRITE, access(0, 250000) + bytes(250000))[0])
    sock.close()
finally:
    server.kill()
PYTHON
timeout 60 python3 client.py | tee seen
cat >expected <<'SEEN'
named without a proposal: max_data_xfer_size max_msg_fds
refused access, bytes after the header: 20
access of nothing, bytes after the header: 0
vector 1 taken away: error 0 signals True
all taken away: error 0 signals False
write of 32768: error 0
announced: 1048576
write of 250000: error 22
SEEN
diff expected seen
