# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# The driver binds, and Linux sees an ordinary IOMMU.

load_modules() {
	[ -n "$iommu" ] || { echo "there is no PV-IOMMU ($vendor:$iommu_id)" && return 1; }
	[ -n "$engines" ] || { echo "there is no DMA test engine ($vendor:$engine_id)" && return 1; }
	for module in pv_iommu pv_dmatest pv_iommu_test; do
		insmod "$modules/$module.ko" || return 1
	done
}

compare_capabilities() {
	cat "$debugfs/pv_iommu/$iommu/capabilities" >/tmp/capabilities
	diff -u /lab/capabilities /tmp/capabilities
}

engines_have_driver() {
	for engine in $engines; do
		same "$engine $(driver_of "$engine")" "$engine pv_dmatest" || return 1
	done
}

engines_have_groups() {
	for engine in $engines; do
		group=$(group_of "$engine")
		[ -n "$group" ] || { echo "$engine has no group" && return 1; }
		same "$(ls "$group/devices")" "$engine" || return 1
	done
}

groups_are_dma() {
	for engine in $engines; do
		same "$(cat "$(group_of "$engine")/type")" DMA || return 1
	done
}

groups_list_msi_window() {
	for engine in $engines; do
		same "$(cat "$(group_of "$engine")/reserved_regions")" \
			"0x00000000fee00000 0x00000000feefffff msi" || return 1
	done
}

# The PV-IOMMU itself is one of them.
others_have_no_group() {
	for folder in "$devices"/*; do
		address=${folder##*/}
		case " $(echo "$engines" | tr '\n' ' ') " in
		*" $address "*) continue ;;
		esac
		[ -z "$(group_of "$address")" ] || { echo "$address has a group" && return 1; }
	done
}
