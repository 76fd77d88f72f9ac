# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# A program of the user's instead of the tests. Files that were added are in /lab/add, the libraries of dynamic programs in
# /lab/add.lib; what the program writes goes to the host as it is, over a port of its own, and its end is a line of the report.

added=/lab/add
program_status=/tmp/program-status
program_bytes=/tmp/program-bytes

program_plan() {
	echo 3
}

program_tests() {
	check "the drivers are bound" program_drivers
	check "the whole output of $program arrives" program_runs
	ended=$(cat "$program_status")
	[ -n "$ended" ] && echo "# lab: program $ended"
	verdict "${ended:-127}" "$program ends with status 0"
}

program_drivers() {
	load_all || return 1
	same "$iommu $(driver_of "$iommu")" "$iommu pviommu" || return 1
	engines_have_driver
}

# The pipe's writer is the program and whatever it leaves behind: the output ends when all of them have.
program_runs() {
	within 5 output_port >/dev/null || { echo "no virtio-serial port named org.pviommu.output" && return 1; }
	: >"$program_status"
	{
		program_alone
		echo $? >"$program_status"
	} 2>&1 </dev/null 3>&- | tee "$(output_port)" | wc -c >"$program_bytes"
	request output-end "$(cat "$program_bytes")"
}

program_alone() (
	cd "$added" || exit 127
	export PATH="$PATH:$added" LD_LIBRARY_PATH="$added:$added.lib" LAB_IOMMU="$iommu"
	LAB_ENGINES=$(echo "$engines" | tr '\n' ' ')
	export LAB_ENGINES
	exec "$added/$program"
)

output_port() {
	for name in /sys/class/virtio-ports/*/name; do
		[ "$(cat "$name")" = org.pviommu.output ] || continue
		port=${name%/name}
		[ -c "/dev/${port##*/}" ] && echo "/dev/${port##*/}" && return 0
	done
	return 1
}
