# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# The PCI functions of the tests, and what is done with them through sysfs. An emulated processor takes milliseconds to
# start a program, so what is done in loops is done by the shell itself where it can.

modules=/lib/modules-lab
debugfs=/sys/kernel/debug
devices=/sys/bus/pci/devices
drivers=/sys/bus/pci/drivers

vendor=0x1234
iommu_id=0x5056
engine_id=0x5057

# functions DEVICE_ID: addresses of all functions with that id, one a line
functions() {
	for folder in "$devices"/*; do
		read -r its_vendor <"$folder/vendor"
		read -r its_id <"$folder/device"
		if [ "$its_vendor $its_id" = "$vendor $1" ]; then
			echo "${folder##*/}"
		fi
	done
}

# port_of ADDRESS: address of the bridge that it is behind, nothing on a root bus
port_of() {
	above=$(readlink -f "$devices/$1/..")
	above=${above##*/}
	[ -e "$devices/$above" ] && echo "$above"
}

# driver_of ADDRESS: name of its driver, nothing if it has none
driver_of() {
	its_driver=$(readlink "$devices/$1/driver") && echo "${its_driver##*/}"
}

# has_driver ADDRESS
has_driver() {
	[ -e "$devices/$1/driver" ]
}

# group_of ADDRESS: folder of its IOMMU group, nothing if it has none
group_of() {
	[ -e "$devices/$1/iommu_group" ] && readlink -f "$devices/$1/iommu_group"
}

# type_of ADDRESS: type of its group
type_of() {
	read -r its_type <"$devices/$1/iommu_group/type" && echo "$its_type"
}

# type_of_mode: what the type of groups is in the mode of this run
type_of_mode() {
	case "$mode" in
	lazy) echo DMA-FQ ;;
	strict) echo DMA ;;
	passthrough) echo identity ;;
	esac
}

# usage: what is in use on both sides
usage() {
	cat "$debugfs/pviommu/$iommu/usage"
}

# usage_held: what is held on both sides; page tables also depend on which addresses the DMA API chose before and after
usage_held() {
	usage | grep -E '^(contexts|bindings|mapped_pages|domains|endpoints) '
}

# held: the part of it that is given back with time; the rest counts what has happened
held() {
	grep -vE "^(events_lost|rings|posted|waited|doorbells|rescues|device_doorbells) " "$debugfs/pviommu/$iommu/usage"
}

# run_ktap FOLDER [SUITE]: runs the tests of a module, or a suite of them; the report is in $report
report=/tmp/report
run_ktap() {
	: >"$report"
	echo "${2:-all}" >"$1/run" && cat "$1/ktap" >"$report"
}

# suite_passes ENGINE SUITE
suite_passes() {
	echo "$2" >"$debugfs/pviommu_dmatest/$1/run" && its_report=$(cat "$debugfs/pviommu_dmatest/$1/ktap") || return 1
	case "$its_report" in
	*"${newline}not ok"*) ;;
	*"${newline}1.."[1-9]*) return 0 ;;
	esac
	echo "$its_report"
	return 1
}

# dma_works: one short test of each engine through the DMA API, in a group of the type of this run
dma_works() {
	for engine in $engines; do
		[ -e "$devices/$engine/iommu_group" ] || { echo "$engine has no group" && return 1; }
		same "$engine $(type_of "$engine")" "$engine $(type_of_mode)" || return 1
		engine_works "$engine" || return 1
	done
}

# engine_works ENGINE: the same for one, whatever the type of its group
engine_works() {
	if [ "$(type_of "$1")" = identity ]; then
		suite_passes "$1" untranslated
	else
		suite_passes "$1" quick
	fi
}

unload_all() {
	for engine in $engines; do
		! has_driver "$engine" || echo "$engine" >"$drivers/pviommu_dmatest/unbind" || return 1
	done
	! has_driver "$iommu" || echo "$iommu" >"$drivers/pviommu/unbind" || return 1
	rmmod pviommu_dmatest && rmmod pviommu
}

# has_tables: whether domains have tables of the guest with the settings of now
has_tables() {
	[ "$tables" != off ] && grep -q '^table_formats .*vtd-ss' /lab/capabilities
}

# kind_of_tables: what the driver says of that
kind_of_tables() {
	if has_tables; then
		echo guest
	else
		echo device
	fi
}

# load_all [PROFILE]
engine_timeout_ms=10000
load_all() {
	insmod "$modules/pviommu.ko" profile="${1:-$profile}" tables="$tables" &&
		insmod "$modules/pviommu_dmatest.ko" timeout_ms="$engine_timeout_ms"
}

# send_maps NAME: a test of that name, which loads the drivers anew, so that tables are the device's and it is told of
# each map. That lasts until somebody sets $tables again, which no test can do for others: it runs in a subshell.
send_maps() {
	tables=off
	check "$1" load_anew
}

load_anew() {
	[ ! -e /sys/module/pviommu_test ] || rmmod pviommu_test
	unload_all && load_all && engines_have_groups
}
