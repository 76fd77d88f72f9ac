#!/bin/sh
# libvfio-user of 2022, as Debian 13 has it in the source of QEMU (1:10.0.13+ds-0+deb13u1): what a server on it, and its
# samples "server" and "client", do with messages that keep to the protocol.
#
# Expected: as QEMU's docs/interop/vfio-user.rst says: an error reply is a header alone; the capabilities of a reply to
#           VERSION are among those proposed; a write of as many bytes as the server announced is served; vectors that are
#           given no eventfd any more have none; a region that can be mapped comes with "a file descriptor"; a map over
#           another is EEXIST; without max_dma_maps there may be 65535 of them; a device has at least nine regions. And
#           that reading the sample's BAR1 gives what is at the offset.
# Seen:     an access that the device refuses is answered with the access and its bytes after the header, and an access of
#           nothing with neither. The reply to VERSION names what was not proposed. 1048576 bytes are announced, and a write
#           of 250000 is refused, because the library takes what its socket hands over at once for all of it; the rest is then
#           taken for headers, so the connection is of no more use. One of 32 KiB always arrives. Taking vector 1 away
#           succeeds, and it still signals; taking all away at once is obeyed. A region with two areas comes with two
#           descriptors of the same file, which QEMU's client refuses, and not at all to a client that takes one, as one does
#           that says nothing. A map over another is EINVAL, and so is the 17th. The configuration space may neither be read
#           nor written by its flags, and both work. "server" gives the beginning of BAR1 at any offset, and "client" ends if
#           a device has nine regions: it wants ten.
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
#include <sys/mman.h>

static ssize_t bar0(vfu_ctx_t *ctx, char *data, size_t count, loff_t offset, bool is_write)
{
	if (is_write && offset == 0x10)
		vfu_irq_trigger(ctx, data[0]);
	errno = EPERM;
	return offset == 0x20 ? -1 : (ssize_t)count;
}

static void mapped(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
}

int main(int argc, char **argv)
{
	struct iovec areas[] = { { (void *)0, 0x1000 }, { (void *)0x2000, 0x1000 } };
	int file = memfd_create("bar1", 0);
	vfu_ctx_t *ctx = vfu_create_ctx(VFU_TRANS_SOCK, argv[argc - 1], 0, NULL, VFU_DEV_TYPE_PCI);

	vfu_pci_init(ctx, VFU_PCI_TYPE_CONVENTIONAL, PCI_HEADER_TYPE_NORMAL, 0);
	vfu_setup_region(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, 1 << 20, bar0, VFU_REGION_FLAG_RW, NULL, 0, -1, 0);
	vfu_setup_region(ctx, VFU_PCI_DEV_BAR1_REGION_IDX, 0x3000, bar0, VFU_REGION_FLAG_RW, areas, 2, file, 0);
	vfu_setup_device_dma(ctx, mapped, NULL);
	vfu_setup_device_nr_irqs(ctx, VFU_DEV_MSIX_IRQ, 2);
	vfu_realize_ctx(ctx);
	while (!vfu_attach_ctx(ctx))
		while (vfu_run_ctx(ctx) >= 0)
			;
	return 1;
}
C
flags="-std=gnu99 -D_GNU_SOURCE -O1 -w -Ilibvfio-user/include -Ilibvfio-user/lib -Iusr/include/json-c"
build() # PROGRAM.c FILE...: with the files of the library that it needs
{
	# shellcheck disable=SC2086
	gcc $flags -o "$(basename "$1" .c)" "$@" usr/lib/*/libjson-c.a -lpthread
}
lib=libvfio-user/lib
build libvfio-user/samples/client.c $lib/migration.c $lib/tran.c $lib/tran_sock.c
rm $lib/tran_pipe.c
for program in device.c libvfio-user/samples/server.c; do build $program $lib/*.c; done
cat >client.py <<'PYTHON'
import json
import os
import socket
import struct
import subprocess
import sys
import time

VERSION, MAP, INFO, REGION, SET_IRQS, READ, WRITE = 1, 2, 4, 5, 8, 9, 10
MSIX, NONE, EVENTFD, TRIGGER = 2, 1, 4, 32


def ask(sock, command, payload, fds=()):
    """The error and the payload of the reply."""
    socket.send_fds(sock, [struct.pack("<HHIII", 7, command, 16 + len(payload), 0, 0) + payload], fds)
    _, _, size, _, error = struct.unpack("<HHIII", sock.recv(16))
    return error, sock.recv(size - 16, socket.MSG_WAITALL) if size > 16 else b""


def started(program, path):
    """It and a connection to it."""
    process = subprocess.Popen([program, path], stderr=subprocess.DEVNULL)
    for _ in range(500):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10)
        try:
            sock.connect(path)
            return process, sock
        except OSError:
            time.sleep(0.01)
    raise SystemExit(f"{program} does not listen")


def capabilities(sock, proposed=b""):
    return json.loads(ask(sock, VERSION, struct.pack("<HH", 0, 1) + proposed)[1][4:-1])["capabilities"]


def access(offset, count, region=0):
    return struct.pack("<QII", offset, region, count)


def described(sock, region):
    """The error, its flags, and how many descriptors come with it."""
    payload = struct.pack("<IIIIQQ", 256, 0, region, 0, 0, 0)
    sock.send(struct.pack("<HHIII", 7, REGION, 16 + len(payload), 0, 0) + payload)
    data, fds, _, _ = socket.recv_fds(sock, 4096, 16)
    return struct.unpack_from("<I", data, 12)[0], *struct.unpack_from("<I", data + bytes(8), 20), len(fds)


def mapped(sock, address, size=4096):
    return ask(sock, MAP, struct.pack("<IIQQQ", 32, 3, 0, address, size))[0]


def signalled(sock, vector, event):
    ask(sock, WRITE, access(0x10, 1) + bytes([vector]))
    try:
        return os.eventfd_read(event) > 0
    except BlockingIOError:
        return False


device, sock = started("./device", "socket")
sample, other = started("./server", "sample")
try:
    told = capabilities(sock)
    print("named without a proposal:", *sorted(told))
    print("refused access, bytes after the header:", len(ask(sock, READ, access(0x20, 4))[1]))
    print("access of nothing, bytes after the header:", len(ask(sock, READ, access(0, 0))[1]))
    events = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    ask(sock, SET_IRQS, struct.pack("<IIIII", 20, EVENTFD | TRIGGER, MSIX, 0, 2), events)
    taken = ask(sock, SET_IRQS, struct.pack("<IIIII", 20, EVENTFD | TRIGGER, MSIX, 1, 1))[0]
    print("vector 1 taken away: error", taken, "signals", signalled(sock, 1, events[1]))
    taken = ask(sock, SET_IRQS, struct.pack("<IIIII", 20, NONE | TRIGGER, MSIX, 0, 0))[0]
    print("all taken away: error", taken, "signals", signalled(sock, 0, events[0]))
    print("region of two areas, for a client that takes one descriptor: error", described(sock, 1)[0])
    _, flags, _ = described(sock, 7)
    print("configuration space: flags", flags, "read error", ask(sock, READ, access(0, 4, 7))[0])
    print("first map: error", mapped(sock, 0, 8192), "map over it: error", mapped(sock, 4096, 8192))
    print("maps that are taken:", 1 + sum(mapped(sock, number << 20) == 0 for number in range(1, 40)))
    print("write of 32768: error", ask(sock, WRITE, access(0, 32768) + bytes(32768))[0])
    print("announced:", told["max_data_xfer_size"])
    print("write of 250000: error", ask(sock, WRITE, access(0, 250000) + bytes(250000))[0])
    capabilities(other, b'{"capabilities":{"max_msg_fds":8}}\0')
    print("region of two areas, for a client that takes eight: descriptors", described(other, 1)[2])
    ask(other, WRITE, access(0x10, 4, 1) + b"here")
    ask(other, WRITE, access(0, 4, 1) + b"zero")
    print("sample, written at 0x10:", ask(other, READ, access(0x10, 4, 1))[1][16:].decode())
finally:
    device.kill()
    sample.kill()

listener = socket.socket(socket.AF_UNIX)
listener.bind("listener")
listener.listen()
client = subprocess.Popen(["./client", "listener"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
sock, _ = listener.accept()
for error, payload in (0, struct.pack("<HH", 0, 0)), (22, b""), (0, struct.pack("<IIII", 16, 3, 9, 5)):
    number, command, size, _, _ = struct.unpack("<HHIII", sock.recv(16))
    sock.recv(size - 16, socket.MSG_WAITALL)
    sock.sendall(struct.pack("<HHIII", number, command, 16 + len(payload), 0x21 if error else 1, error) + payload)
print("sample", client.communicate()[1].splitlines()[-1])
PYTHON
timeout 60 python3 client.py | tee seen
cat >expected <<'SEEN'
named without a proposal: max_data_xfer_size max_msg_fds
refused access, bytes after the header: 20
access of nothing, bytes after the header: 0
vector 1 taken away: error 0 signals True
all taken away: error 0 signals False
region of two areas, for a client that takes one descriptor: error 28
configuration space: flags 0 read error 0
first map: error 0 map over it: error 22
maps that are taken: 16
write of 32768: error 0
announced: 1048576
write of 250000: error 22
region of two areas, for a client that takes eight: descriptors 2
sample, written at 0x10: zero
sample client: bad number of device regions 9
SEEN
diff expected seen
