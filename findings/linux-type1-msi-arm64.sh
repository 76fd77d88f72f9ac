#!/bin/sh
# Linux 7.3.4 for arm64 (Debian 7.3.4-1~bpo13+1) in QEMU 11.1.3 (1:11.1.3+ds-1~bpo13+1): MSI-X of a function in a type1 container.
#
# Expected: a program that has a function by VFIO gets its interrupts, whatever IOMMU the function is behind. virtio-iommu
#           says where messages go (a region of type MSI), so that they need no mapping; so they get none in the container.
# Seen:     behind virtio-iommu VFIO_DEVICE_SET_IRQS is ENOSPC for the first vector of a function that has five; when the program
#           has ended and the function leaves vfio-pci, the kernel warns in its_msi_teardown(). Behind QEMU's SMMUv3, which
#           translates messages, the same program on the same kernel gets its interrupt. type1 gives its domain a cookie for
#           messages only if they are translated, and iommu_dma_prepare_msi() refuses domains without one; after
#           that the ITS does not give back what it has allocated.
#
# Needs python3 and a Debian whose mirror has these versions; fetches about 160 MB. Exit status 0: as seen.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN)' 'Created-By: Packages' |
	awk '/ Debian$/ && !/security/ { print $1; exit }')
for suite in trixie trixie-backports; do
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg arch=amd64,arm64] $mirror $suite main"
done >sources.list
mkdir -p lists/partial archives/partial root guest
: >status
qemu=1:11.1.3+ds-1~bpo13+1
linux=7.3.4+deb13-cloud-arm64
get() { # WORDS of apt-get
	apt-get -qq -o Dir::Etc::sourcelist="$folder/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State="$folder" \
		-o Dir::State::status="$folder/status" -o Dir::Cache::archives="$folder/archives" -o APT::Architecture=amd64 \
		-o APT::Architectures::=amd64 -o APT::Architectures::=arm64 -o APT::Sandbox::User=root "$@" >/dev/null
}
get update
get install --yes --download-only --no-install-recommends base-files libc6 qemu-system-arm="$qemu" \
	qemu-system-common="$qemu" qemu-system-data="$qemu"
dpkg-deb -x archives/base-files_*.deb root
for package in archives/*.deb; do dpkg-deb -x "$package" root; done
for package in binary modules; do set -- "$@" "linux-$package-$linux:arm64=7.3.4-1~bpo13+1"; done
for package in busybox-static python3.13-minimal libpython3.13-minimal libc6 libexpat1 zlib1g; do set -- "$@" "$package:arm64"; done
mkdir fetched
(cd fetched && get download "$@")
for package in fetched/*.deb; do dpkg-deb -x "$package" guest; done
cat >arm.py <<'PYTHON'
import errno
import fcntl
import os
import struct

FUNCTION = "0000:00:02.0"
SET_IOMMU, SET_CONTAINER, GET_DEVICE_FD, GET_IRQ_INFO, SET_IRQS = (0x3B66, 0x3B68, 0x3B6A, 0x3B6D, 0x3B6E)
TYPE1V2, MSIX, EVENTFD_TRIGGER = 3, 2, 1 << 2 | 1 << 5

group_name = os.path.basename(os.readlink(f"/sys/bus/pci/devices/{FUNCTION}/iommu_group"))
container = os.open("/dev/vfio/vfio", os.O_RDWR)
group = os.open(f"/dev/vfio/{group_name}", os.O_RDWR)
fcntl.ioctl(group, SET_CONTAINER, struct.pack("i", container))
fcntl.ioctl(container, SET_IOMMU, TYPE1V2)
device = fcntl.ioctl(group, GET_DEVICE_FD, bytearray(f"{FUNCTION}\0".encode()))
count = struct.unpack("4I", fcntl.ioctl(device, GET_IRQ_INFO, struct.pack("4I", 16, 0, MSIX, 0)))[3]
try:
    fcntl.ioctl(device, SET_IRQS, struct.pack("5Ii", 24, EVENTFD_TRIGGER, MSIX, 0, 1, os.eventfd(0)))
    result = "armed"
except OSError as error:
    result = errno.errorcode[error.errno]
print(f"RESULT {result} of {count}", flush=True)
PYTHON
cat >init <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
for module in virtio-iommu vfio vfio_iommu_type1 vfio-pci-core vfio-pci; do insmod "/$module.ko"; done
function=/sys/bus/pci/devices/0000:00:02.0
echo vfio-pci >$function/driver_override
echo 0000:00:02.0 >/sys/bus/pci/drivers_probe
grep -H . $function/iommu_group/reserved_regions
/python /arm.py
echo 0000:00:02.0 >$function/driver/unbind
dmesg | grep -c 'WARNING.* its_msi_teardown' | sed 's/^/WARNINGS /'
poweroff -f
INIT
cat >boot.py <<'PYTHON'
import lzma
import os
import pathlib
import re
import subprocess
import sys

folder = pathlib.Path(sys.argv[1])
guest, root = folder / "guest", folder / "root"
libraries = "usr/lib/aarch64-linux-gnu"
packed, names = bytearray(), set()


def entry(name, mode, content=b""):
    parent = os.path.dirname(name)
    if parent and parent not in names:
        entry(parent, 0o40755)
    names.add(name)
    fields = (len(names), mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
    packed.extend(header + b"\0" * (-len(header) % 4) + content + b"\0" * (-len(content) % 4))


for name in ("dev", "proc", "sys", "tmp"):
    entry(name, 0o40755)
entry("bin/busybox", 0o100755, (guest / "usr/bin/busybox").read_bytes())
entry("python", 0o100755, (guest / "usr/bin/python3.13").read_bytes())
for path in sorted(path for path in (guest / "usr/lib/python3.13").rglob("*.py") if path.is_file()):
    entry(str(path.relative_to(guest)), 0o100644, path.read_bytes())
for name in ("libc.so.6", "libm.so.6", "libexpat.so.1", "libz.so.1", "ld-linux-aarch64.so.1"):
    target = "lib/" + name if name.startswith("ld-") else f"lib/aarch64-linux-gnu/{name}"
    entry(target, 0o100755, (guest / libraries / name).resolve().read_bytes())
for path in guest.rglob("*.ko.xz"):
    if path.name.removesuffix(".ko.xz") in "virtio-iommu vfio vfio_iommu_type1 vfio-pci-core vfio-pci".split():
        entry(path.name.removesuffix(".xz"), 0o100644, lzma.decompress(path.read_bytes()))
for name, mode in (("init", 0o100755), ("arm.py", 0o100644)):
    entry(name, mode, (folder / name).read_bytes())
entry("TRAILER!!!", 0)
(folder / "initrd").write_bytes(packed)


def boot(*words):
    own = f"{root}/usr/lib/x86_64-linux-gnu"
    command = [f"{root}/lib64/ld-linux-x86-64.so.2", "--library-path", own, f"{root}/usr/bin/qemu-system-aarch64"]
    command += "-nodefaults -display none -no-reboot -serial stdio -accel tcg -cpu cortex-a76 -m 1G".split()
    command += ["-L", f"{root}/usr/share/qemu", "-kernel", str(next(guest.rglob("vmlinuz*"))), "-initrd", f"{folder}/initrd"]
    command += ["-append", "console=ttyAMA0 panic=-1 quiet", *words, "-device", "e1000e,addr=2,romfile="]
    environment = {**os.environ, "QEMU_MODULE_DIR": f"{own}/qemu"}
    ended = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240)
    found = re.findall(r"^(RESULT|WARNINGS) (.*?)\r?$", ended.stdout, re.MULTILINE)
    if len(found) != 2:
        print(ended.stdout, ended.stderr)
    return dict(found)


virtio = boot("-machine", "virt,acpi=off,gic-version=3", "-device", "virtio-iommu-pci,addr=1")
smmu = boot("-machine", "virt,acpi=off,gic-version=3,iommu=smmuv3")
print(f"behind virtio-iommu: {virtio}\nbehind QEMU's SMMUv3: {smmu}")
seen = {"RESULT": "ENOSPC of 5", "WARNINGS": "1"}, {"RESULT": "armed of 5", "WARNINGS": "0"}
raise SystemExit((virtio, smmu) != seen)
PYTHON
timeout 300 python3 boot.py "$folder"
