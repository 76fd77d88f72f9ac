# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# The driver speaks the profile that its parameter names, and has the kind of tables that its parameter names: under the
# other profile it has the other kind too, so that a run tries both. Begins and ends with the drivers loaded, without that
# of the raw tests.

# other_profile: the one that the run did not begin with
other_profile() {
	if [ "$profile" = xen-2024 ]; then
		echo xen-v7
	else
		echo xen-2024
	fi
}

# other_tables: what gives the other kind, where the device has both
other_tables() {
	if has_tables; then
		echo off
	else
		echo auto
	fi
}

profiles_plan() {
	if [ "$mode" = passthrough ]; then
		echo $((5 + engine_count))
	else
		echo $((6 + engine_count))
	fi
}

profiles_tests() {
	other=$(other_profile)
	usual_tables=$tables
	check "an unknown profile is refused" unknown_profile_is_refused
	check "an unknown kind of tables is refused" unknown_tables_are_refused
	tables=$(other_tables)
	check "the driver binds with profile $other" select_profile "$other"
	insmod "$modules/pviommu_test.ko"
	run_ktap "$debugfs/pviommu_test"
	subtest "operations of the PV-IOMMU under $other" "$report"
	rmmod pviommu_test
	for engine in $engines; do
		its_suite=all
		[ "$engine" = "$(echo "$engines" | head -n 1)" ] || its_suite=quick
		[ "$mode" = passthrough ] && its_suite=untranslated
		# where the driver has not bound, nothing would keep DMA in its place
		: >"$report"
		[ -e "$devices/$engine/iommu_group" ] && run_ktap "$debugfs/pviommu_dmatest/$engine" "$its_suite"
		subtest "DMA API of $engine under $other" "$report"
	done
	if [ "$mode" != passthrough ]; then
		run_ktap "$debugfs/pviommu_dmatest/$(echo "$engines" | head -n 1)" "$mode"
		subtest "DMA after unmap under $other, with tables of the $(kind_of_tables)" "$report"
	fi
	tables=$usual_tables
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

unknown_tables_are_refused() {
	unload_all || return 1
	before=$(log_lines)
	insmod "$modules/pviommu.ko" tables=some || return 1
	same "$iommu $(driver_of "$iommu")" "$iommu " || return 1
	said=$(log_since "$before" | grep -A 1 "unknown tables=some")
	echo "$said" | grep -q "failed with error -22" || { echo "$said" && return 1; }
	rmmod pviommu && load_all
}

# select_profile NAME: loads the drivers anew
select_profile() {
	unload_all && load_all "$1" || return 1
	same "$iommu $(driver_of "$iommu")" "$iommu pviommu" || return 1
	same "$(usage | grep -E '^(profile|tables) ')" "profile $1${newline}tables $(kind_of_tables)" || return 1
	compare_capabilities && dma_works
}
