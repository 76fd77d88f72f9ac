# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# Faults reach the kernel's tracepoint and the driver's event log, by interrupt. The address is that of the raw tests' first fault.

tracing=/sys/kernel/tracing
fault_iova=12345123

trace_faults() {
	echo 1 >"$tracing/events/iommu/io_page_fault/enable"
}

trace_has_faults() {
	first=$(echo "$engines" | head -n 1)
	grep "io_page_fault.*$first iova=0x0*$fault_iova flags=0x0001" "$tracing/trace" ||
		{ grep -v '^#' "$tracing/trace" | tail -n 20 && return 1; }
}

event_log_has_faults() {
	first=$(echo "$engines" | head -n 1)
	grep -E "^[0-9]+ not-mapped write [0-9]+ $first [0-9]+ 0x$fault_iova\$" "$debugfs/pv_iommu/$iommu/events" ||
		{ cat "$debugfs/pv_iommu/$iommu/events" && return 1; }
}

# Without its interrupt a sleeping wait ends as well, but only when its time is up.
interrupts_came() {
	for name in pv_iommu-events pv_iommu-ring0; do
		awk -v name="$name" '
			$NF == name { for (cpu = 2; $cpu ~ /^[0-9]+$/; cpu++) taken += $cpu }
			END { exit !taken }' /proc/interrupts ||
			{ echo "no interrupt of $name" && return 1; }
	done
}
