# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# The driver speaks the profile that its parameter names. Begins and ends with the drivers loaded, without that of the raw tests.

other_profile=xen-v7

profile_tests() {
	check "an unknown profile is refused" unknown_profile_is_refused
	check "the driver binds with profile $other_profile" select_profile "$other_profile"
	insmod "$modules/pv_iommu_test.ko"
	run_ktap "$debugfs/pv_iommu_test"
	subtest "operations of the PV-IOMMU under $other_profile" "$report"
	rmmod pv_iommu_test
	for engine in $engines; do
		# where the driver has not bound, nothing would keep DMA in its place
		: >"$report"
		[ -n "$(group_of "$engine")" ] && run_ktap "$debugfs/pv_dmatest/$engine" quick
		subtest "DMA API of $engine under $other_profile" "$report"
	done
	check "the driver binds with profile xen-2024 again" select_profile xen-2024
}

unknown_profile_is_refused() {
	unload_all && insmod "$modules/pv_iommu.ko" profile=xen-2099 || return 1
	same "$iommu $(driver_of "$iommu")" "$iommu " || return 1
	said=$(dmesg | grep -A 1 "unknown profile xen-2099")
	echo "$said" | grep -q "failed with error -22" || { echo "$said" && return 1; }
	rmmod pv_iommu && load_all
}

# select_profile NAME: loads the drivers anew
select_profile() {
	unload_all || return 1
	insmod "$modules/pv_iommu.ko" profile="$1" && insmod "$modules/pv_dmatest.ko" || return 1
	same "$iommu $(driver_of "$iommu")" "$iommu pv_iommu" || return 1
	same "$(usage | grep '^profile ')" "profile $1" || return 1
	compare_capabilities && dma_works
}
