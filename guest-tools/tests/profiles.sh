# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# The driver speaks the profile that its parameter names. Begins and ends with the drivers loaded, without that of the
# raw tests.

# other_profile: the one that the run did not begin with
other_profile() {
	if [ "$profile" = xen-2024 ]; then
		echo xen-v7
	else
		echo xen-2024
	fi
}

profiles_plan() {
	echo $((4 + engine_count))
}

profiles_tests() {
	other=$(other_profile)
	check "an unknown profile is refused" unknown_profile_is_refused
	check "the driver binds with profile $other" select_profile "$other"
	insmod "$modules/pviommu_test.ko"
	run_ktap "$debugfs/pviommu_test"
	subtest "operations of the PV-IOMMU under $other" "$report"
	rmmod pviommu_test
	for engine in $engines; do
		suite=quick
		[ "$mode" = passthrough ] && suite=untranslated
		# where the driver has not bound, nothing would keep DMA in its place
		: >"$report"
		[ -e "$devices/$engine/iommu_group" ] && run_ktap "$debugfs/pviommu_dmatest/$engine" "$suite"
		subtest "DMA API of $engine under $other" "$report"
	done
	check "the driver binds with profile $profile again" select_profile "$profile"
}

unknown_profile_is_refused() {
	unload_all || return 1
	before=$(log_lines)
	insmod "$modules/pviommu.ko" profile=xen-2099 || return 1
	same "$iommu $(driver_of "$iommu")" "$iommu " || return 1
	said=$(log_since "$before" | grep -A 1 "unknown profile xen-2099")
	echo "$said" | grep -q "failed with error -22" || { echo "$said" && return 1; }
	rmmod pviommu && load_all
}

# select_profile NAME: loads the drivers anew
select_profile() {
	unload_all && load_all "$1" || return 1
	same "$iommu $(driver_of "$iommu")" "$iommu pviommu" || return 1
	same "$(usage | grep '^profile ')" "profile $1" || return 1
	compare_capabilities && dma_works
}
