# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# The PCI functions of the tests, and what is done with them through sysfs.

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
		if [ "$(cat "$folder/vendor")" = "$vendor" ] && [ "$(cat "$folder/device")" = "$1" ]; then
			echo "${folder##*/}"
		fi
	done
}

# driver_of ADDRESS: name of its driver, nothing if it has none
driver_of() {
	[ -e "$devices/$1/driver" ] && basename "$(readlink "$devices/$1/driver")"
}

# group_of ADDRESS: folder of its IOMMU group, nothing if it has none
group_of() {
	[ -e "$devices/$1/iommu_group" ] && readlink -f "$devices/$1/iommu_group"
}

# usage: what is in use on both sides
usage() {
	cat "$debugfs/pv_iommu/$iommu/usage"
}

# run_ktap FOLDER [quick]: runs the tests of a module, or a few of them; the report is in $report
report=/tmp/report
run_ktap() {
	echo "${2:-all}" >"$1/run"
	cat "$1/ktap" >"$report"
}
