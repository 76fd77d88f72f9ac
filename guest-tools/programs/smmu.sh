#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Linux' own SMMUv3 driver on the virtual SMMUv3:
#
#     pviommu lab run --arch arm64 --kernel debian-7 --topology lab-smmu --run guest-tools/programs/smmu.sh
#
# The engines without a group are those behind the SMMU; their StreamIDs are 8, 9, ... in the order of their addresses. They are
# removed, the SMMU comes into the device tree, and what comes back is behind it. Ends with status 0 if all of this went right.

devices=/sys/bus/pci/devices
drivers=/sys/bus/pci/drivers
dmatest=/sys/kernel/debug/pviommu_dmatest
first_stream=8
failures=0

# said STATUS WHAT
said() {
	if [ "$1" = 0 ]; then
		echo "ok: $2"
	else
		echo "NOT OK: $2"
		failures=$((failures + 1))
	fi
}

# check WHAT COMMAND...
check() {
	what=$1
	shift
	"$@"
	said $? "$what"
}

# suite ENGINE SUITE: runs it, shows what failed and how many passed
suite() {
	echo "$2" >"$dmatest/$1/run" || return 1
	cat "$dmatest/$1/ktap" >/tmp/ktap || return 1
	grep -v "^ok\|^KTAP\|^1\.\." /tmp/ktap
	echo "  $(grep -c '^ok' /tmp/ktap) of $(sed -n 's/^1\.\.//p' /tmp/ktap) tests of $2 passed on $1"
	grep -q '^1\.\.[1-9]' /tmp/ktap && ! grep -q '^not ok' /tmp/ktap
}

behind() {
	for engine in $LAB_ENGINES; do
		[ -e "$devices/$engine/iommu_group" ] || echo "$engine"
	done
}

take_away() {
	for engine in $engines; do
		echo 1 >"$devices/$engine/remove" || return 1
	done
}

bring_back() {
	echo 1 >/sys/bus/pci/rescan || return 1
	for engine in $engines; do
		[ -e "$devices/$engine/driver" ] || echo "$engine" >"$drivers/pviommu_dmatest/bind"
		[ -e "$devices/$engine/iommu_group" ] || { echo "  $engine has no group" && return 1; }
		echo "  $engine: $(readlink "$devices/$engine/iommu_group" | sed 's/.*\///') $(cat "$devices/$engine/iommu_group/type")"
		sed 's/^/    /' "$devices/$engine/iommu_group/reserved_regions"
	done
}

# Two engines have two groups, and each only itself in it.
apart() {
	for engine in $engines; do
		[ "$(ls "$devices/$engine/iommu_group/devices")" = "$engine" ] || return 1
	done
}

# The driver has turned ATS on where a function has it, if the kernel knows of it (PCI_ATS): the first extended capability, at 0x100,
# with its control at 0x106.
has_ats() {
	grep -q ' pci_enable_ats$' /proc/kallsyms
}

# caches_are CONTROL
caches_are() {
	count=0
	for engine in $engines; do
		[ "$(od -An -tx2 -j 256 -N 2 "$devices/$engine/config")" = " 000f" ] || continue
		count=$((count + 1))
		control=$(od -An -tx2 -j 262 -N 2 "$devices/$engine/config")
		echo "  $engine: ATS control$control"
		[ "$control" = " $1" ] || return 1
	done
	[ "$count" = 1 ]
}

works() {
	result=0
	for engine in $engines; do
		for name in "$@"; do
			suite "$engine" "$name" || result=1
		done
	done
	return "$result"
}

# to_driver NAME: the engines leave their driver for this one
to_driver() {
	for engine in $engines; do
		echo "$engine" >"$devices/$engine/driver/unbind" && echo "$1" >"$devices/$engine/driver_override" &&
			echo "$engine" >/sys/bus/pci/drivers_probe || return 1
		[ "$(basename "$(readlink "$devices/$engine/driver")")" = "$1" ] || return 1
	done
}

vfio_load() {
	modprobe vfio_pci && modprobe vfio_iommu_type1
}

vfio_interfaces() {
	echo type1
	if modprobe iommufd 2>/dev/null; then echo iommufd; fi
}

# allow INTERFACE: VFIO takes interrupts for isolated where there is an ITS, and asks for a decision where there is none
allow() {
	module=iommufd
	[ "$1" = type1 ] && module=vfio_iommu_type1
	echo Y >"/sys/module/$module/parameters/allow_unsafe_interrupts"
}

# user_space INTERFACE: a program drives the engines, with an interrupt for each request
user_space() {
	allow "$1" || return 1
	# shellcheck disable=SC2086 # a word an engine
	pviommu_vfio --other "--$1" $engines >/tmp/vfio
	result=$?
	sed 's/^/  /' /tmp/vfio
	return "$result"
}

# The driver's suites refuse DMA on purpose; the kernel's log names each by function or StreamID.
faults_are_logged() {
	dmesg | grep -i "smmu" | grep -i "event\|iova\|fault" >/tmp/faults
	head -n 8 /tmp/faults | sed 's/^/  /'
	[ -s /tmp/faults ]
}

engines=$(behind)
map=
stream=$first_stream
for engine in $engines; do
	map="$map,$engine=$stream"
	stream=$((stream + 1))
done
[ -n "$map" ] || { echo "no engine is behind an SMMU: the topology is lab-smmu" >&2 && exit 1; }
case $(cat /proc/cmdline) in
*iommu.strict=1*) mode=strict ;;
*) mode=lazy ;;
esac

check "the engines are removed" take_away
check "the SMMU comes into the device tree" insmod /lib/modules-lab/pviommu_smmu_dt.ko endpoints="${map#,}"
dmesg | grep -i "arm-smmu-v3\|smmu_dt" | sed 's/^/  /'
check "the engines are back, each with a group" bring_back
check "each is alone in its group" apart
if has_ats; then
	check "ATS is on at the engine that has it" caches_are 8000
else
	check "this kernel knows no ATS, so it is off at the engine that has it" caches_are 0000
fi
check "DMA is right, every byte checked" works memory "$mode"
check "faults are in the kernel's log" faults_are_logged
check "the engines are removed again" take_away
check "and come back" bring_back
check "DMA is right after a rescan" works quick
check "there is VFIO" vfio_load
check "the engines go to vfio-pci" to_driver vfio-pci
for interface in $(vfio_interfaces); do
	check "a program drives them by $interface" user_space "$interface"
done
check "the engines go back" to_driver pviommu_dmatest
check "DMA is right after the program" works quick
check "the engines are removed for good" take_away
check "the SMMU leaves the device tree" rmmod pviommu_smmu_dt
check "the SMMU comes back" insmod /lib/modules-lab/pviommu_smmu_dt.ko endpoints="${map#,}"
check "the engines come back" bring_back
check "DMA is right after that" works quick
dmesg | grep -iE "warn|bug:|oops|call trace|timeout" | sed 's/^/  /'
echo "$failures failures"
[ "$failures" = 0 ]
