#!/bin/sh
# SPDX-License-Identifier: MIT
#
# The tests of the guest. Standard output is a KTAP report and nothing else; notes go to standard error.

cd "$(dirname "$0")" || exit 1
. ./lib.sh
. ./devices.sh
. ./setup.sh
. ./traces.sh
. ./lifecycle.sh
. ./profiles.sh

iommu=$(functions "$iommu_id" | head -n 1)
engines=$(functions "$engine_id")

# set-up, operations and DMA API, traces, life cycle, the other profile, the kernel log
plan $((9 + 1 + $(echo "$engines" | wc -l) + 3 + 6 + 4 + $(echo "$engines" | wc -l) + 1))

check "the modules load" load_modules
check "pv_iommu binds to the PV-IOMMU" same "$(driver_of "$iommu")" pv_iommu
check "the IOMMU core lists it" test -d "/sys/class/iommu/pv_iommu-$iommu"
check "its capabilities are those of the server" compare_capabilities
check "every engine has a driver" engines_have_driver
check "every engine has a group of its own" engines_have_groups
check "the groups are of type DMA" groups_are_dma
check "the groups list the MSI window as reserved and nothing else" groups_list_msi_window
check "functions that are not behind it have no group" others_have_no_group

trace_faults
# first, because its DMA stays within pages of its own even where the IOMMU lets too much pass
run_ktap "$debugfs/pv_iommu_test"
subtest "operations of the PV-IOMMU" "$report"
for engine in $engines; do
	run_ktap "$debugfs/pv_dmatest/$engine"
	subtest "DMA API of $engine" "$report"
done
check "the io_page_fault tracepoint has recorded the faults" trace_has_faults
check "the event log has the faults" event_log_has_faults
check "events and completions came by interrupt" interrupts_came

lifecycle_tests
profile_tests
check "the kernel has nothing to complain about" kernel_is_content
finish
