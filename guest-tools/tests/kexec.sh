# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# A second kernel is started without a reset of the machine, with other settings, and goes on with the report. Part of
# long runs, where the image has kernel and first root once more.

kexec_plan() {
	echo 0
}

# Returns only when it fails; then the tests of the second kernel are missing.
kexec_tests() {
	command_line=$(sed 's/ *iommu\.[a-z]*=[^ ]*//g; s/ *lab\.[a-z]*=[^ ]*//g' /proc/cmdline)
	pviommu_kexec "$boot_kernel" "$boot_initrd" "$command_line iommu.forcedac=1 iommu.passthrough=1 \
lab.stage=2 lab.number=$number lab.failures=$failures" >&2
}

# argument NAME: its value in the kernel's command line
argument() {
	tr ' ' '\n' </proc/cmdline | sed -n "s/^lab\\.$1=//p"
}

second_plan() {
	echo 1
}

second_tests() {
	check "the second kernel finds nothing that the first one left" nothing_is_left
}

# The server tells: the driver of this kernel has just begun, and identity and blocked are no contexts of their own.
nothing_is_left() {
	same "$(held | grep -E '^(contexts|pool_used|mapped_pages|domains|slots_in_flight) ')" "contexts 0
pool_used 0
mapped_pages 0
domains 0
slots_in_flight 0"
}
