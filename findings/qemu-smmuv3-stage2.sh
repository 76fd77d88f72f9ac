#!/bin/sh
# QEMU 11.1.3's SMMUv3 (Debian 1:11.1.3+ds-1~bpo13+1): a stage 2 that begins with two tables side by side.
#
# Expected: with 4 KiB pages and 40 bits of input from level 1 the first level is two tables of 4096 bytes, one behind the other
#           (DDI 0487, concatenated translation tables), so the entry of input 2**39 is 4096 bytes behind the first one.
#           Linux makes such tables for stage 2 domains of 40 to 43 bits.
# Seen:     it is looked for in the first table, at the same place there: with the entry where it belongs the access is
#           F_TRANSLATION, with that of input 0 it passes. So two inputs that differ in the bits above a table lead to one page.
#
# Needs python3 and a Debian whose mirror has that version; fetches about 100 MB. Exit status 0: as seen.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN)' 'Created-By: Packages' |
	awk '/ Debian$/ && !/security/ { print $1; exit }')
for suite in trixie trixie-backports; do
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg arch=amd64] $mirror $suite main"
done >sources.list
mkdir -p lists/partial archives/partial root
: >status
version=1:11.1.3+ds-1~bpo13+1
for words in update "install --yes --download-only --no-install-recommends base-files libc6 qemu-system-arm=$version \
	qemu-system-common=$version qemu-system-data=$version"; do
	# shellcheck disable=SC2086
	apt-get -qq -o Dir::Etc::sourcelist="$folder/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State="$folder" \
		-o Dir::State::status="$folder/status" -o Dir::Cache::archives="$folder/archives" -o APT::Architecture=amd64 \
		-o APT::Sandbox::User=root $words >/dev/null
done
dpkg-deb -x archives/base-files_*.deb root
for package in archives/*.deb; do dpkg-deb -x "$package" root; done
cat >stage2.py <<'PYTHON'
import os
import socket
import subprocess
import sys

ROOT = sys.argv[1]
LIBRARIES = f"{ROOT}/usr/lib/x86_64-linux-gnu"
SMMU, ECAM, BAR = 0x09050000, 0x4010000000, 0x10000000
STREAM_TABLE, COMMANDS, EVENTS, TABLE, PAGE = 0x41000000, 0x41100000, 0x41110000, 0x41200000, 0x42000000
SID, INPUT = 8, 1 << 39


class Machine:
    def __init__(self):
        ours, theirs = socket.socketpair()
        command = [f"{ROOT}/lib64/ld-linux-x86-64.so.2", "--library-path", LIBRARIES, f"{ROOT}/usr/bin/qemu-system-aarch64"]
        command += "-nodefaults -display none -accel qtest -qtest-log none -m 64M -cpu max".split()
        command += "-machine virt,acpi=off,gic-version=3,iommu=smmuv3 -device iommu-testdev,addr=1".split()
        command += ["-L", f"{ROOT}/usr/share/qemu", "-chardev", f"socket,id=q,fd={theirs.fileno()}", "-qtest", "chardev:q"]
        environment = {**os.environ, "QEMU_MODULE_DIR": f"{LIBRARIES}/qemu"}
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        theirs.close()
        self.stream = ours.makefile("rw", newline="\n")
        self.words("l", (ECAM + 0x8010, BAR), (ECAM + 0x8004, 6))

    def ask(self, line):
        self.stream.write(line + "\n")
        self.stream.flush()
        return self.stream.readline().split()

    def words(self, size, *pairs):
        for address, value in pairs:
            assert self.ask(f"write{size} {address:#x} {value:#x}") == ["OK"]

    def read(self, size, address):
        return int(self.ask(f"read{size} {address:#x}")[1], 16)

    def access(self, entry):
        """A write to INPUT, whose entry is at ``entry``; its result and its event's type."""
        vtcr = 24 | 1 << 6 | 4 << 16  # 40 bits, from level 1, 4 KiB, 44 bits of output
        ste = STREAM_TABLE + 64 * SID
        self.words("q", (ste, 6 << 1 | 1), (ste + 8, 0), (ste + 16, vtcr << 32 | 1 << 51 | 1 << 58), (ste + 24, TABLE))
        self.words("q", (entry, TABLE + 0x10003), (TABLE + 0x10000, TABLE + 0x11003))
        self.words("q", (TABLE + 0x11000, PAGE | 0x7C3))
        self.words("q", (SMMU + 0x80, STREAM_TABLE), (SMMU + 0x90, COMMANDS | 8), (SMMU + 0xA0, EVENTS | 7))
        self.words("l", (SMMU + 0x88, 5), (SMMU + 0x20, 0xD))
        iova = ((BAR + 4, INPUT & 0xFFFFFFFF), (BAR + 8, INPUT >> 32))
        self.words("l", *iova, (BAR + 0x1C, PAGE), (BAR + 0x20, 0), (BAR + 0xC, 4), (BAR + 0x14, 1))
        self.read("l", BAR)
        return self.read("l", BAR + 0x10), self.read("q", EVENTS) & 0xFF


def tried(entry):
    machine = Machine()
    try:
        return machine.access(entry)
    finally:
        machine.process.kill()
        machine.process.wait()


where_it_belongs, in_the_first = tried(TABLE + 0x1000), tried(TABLE)
for text, (result, event) in (("second", where_it_belongs), ("first", in_the_first)):
    print(f"the entry is in the {text} table: result {result:#x}, event {event:#x}")
raise SystemExit((where_it_belongs, in_the_first) != ((0xDEAD0002, 0x10), (0, 0)))
PYTHON
timeout 60 python3 stage2.py "$folder/root"
