# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# The driver binds, and Linux sees an ordinary IOMMU.

setup_plan() {
	echo 10
}

setup_tests() {
	check "the modules load" load_modules
	check "pviommu binds to the PV-IOMMU" same "$(driver_of "$iommu")" pviommu
	check "the IOMMU core lists it" test -d "/sys/class/iommu/pviommu-$iommu"
	check "its capabilities are those of the server" compare_capabilities
	check "tables of domains are those of the $(kind_of_tables)" same "$(usage | grep '^tables ')" "tables $(kind_of_tables)"
	check "every engine has a driver" engines_have_driver
	check "every engine has a group of its own" engines_have_groups
	check "the groups are of type $(type_of_mode)" groups_have_type
	check "the groups list the MSI windows as reserved and nothing else" groups_list_msi_windows
	check "functions that are not behind it have no group" others_have_no_group
}

load_modules() {
	[ -n "$iommu" ] || { echo "there is no PV-IOMMU ($vendor:$iommu_id)" && return 1; }
	[ -n "$engines" ] || { echo "there is no DMA test engine ($vendor:$engine_id)" && return 1; }
	load_all && insmod "$modules/pviommu_test.ko"
}

compare_capabilities() {
	cat "$debugfs/pviommu/$iommu/capabilities" >/tmp/capabilities
	diff -u /lab/capabilities /tmp/capabilities
}

engines_have_driver() {
	for engine in $engines; do
		same "$engine $(driver_of "$engine")" "$engine pviommu_dmatest" || return 1
	done
}

engines_have_groups() {
	for engine in $engines; do
		group=$(group_of "$engine")
		[ -n "$group" ] || { echo "$engine has no group" && return 1; }
		same "$(ls "$group/devices")" "$engine" || return 1
	done
}

groups_have_type() {
	for engine in $engines; do
		same "$engine $(type_of "$engine")" "$engine $(type_of_mode)" || return 1
	done
}

groups_list_msi_windows() {
	windows=$(while read -r what first last kind whose; do
		[ "$what $kind $whose" = "reserved msi global" ] && printf '0x%016x 0x%016x msi\n' "$first" "$last"
	done </lab/capabilities)
	[ -n "$windows" ] || { echo "the server has no MSI window" && return 1; }
	for engine in $engines; do
		same "$(cat "$(group_of "$engine")/reserved_regions")" "$windows" || return 1
	done
}

# The PV-IOMMU itself is one of them, and so are the ports above the engines.
others_have_no_group() {
	for folder in "$devices"/*; do
		address=${folder##*/}
		case " $(echo "$engines" "$cards" | tr '\n' ' ') " in
		*" $address "*) continue ;;
		esac
		[ ! -e "$devices/$address/iommu_group" ] || { echo "$address has a group" && return 1; }
	done
}
