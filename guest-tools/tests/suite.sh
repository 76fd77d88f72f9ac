# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# Tests by others instead of those of the lab: the kernel's tools/testing/selftests/vfio, on the engines. Each program's report is
# a test below that of the suite; a program that says that it has nothing to test here is a test that was skipped.

suites=/lab/suite
shmem_huge=/sys/kernel/mm/transparent_hugepage/shmem_enabled
huge_1g=/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages

suite_plan() {
	echo 6
}

suite_tests() {
	usage_held >/tmp/usage.vfio
	check "vfio-pci is there" vfio_load
	check "there are huge pages, one of 1 GiB too if the kernel has that size" suite_reserves
	check "the engines go to vfio-pci" vfio_take_engines
	for interface in $(vfio_interfaces); do
		vfio_allow "$interface" Y
	done
	suite_programs | indented
	suite_passed
	verdict $? "selftests/$suite"
	check "the engines go back to pviommu_dmatest, and the DMA API works" suite_gives_back
	check "nothing is left of VFIO" same "$(usage_held)" "$(cat /tmp/usage.vfio)"
}

# vfio_pci_driver_test maps 1 GiB of shared memory before each test, whose time it is part of: in pages of 2 MiB, as far as there
# are some. The interfaces that map page by page do so anyway.
suite_reserves() {
	echo always >"$shmem_huge" || return 1
	# with pages of 64 KiB there is no such size, and the suite skips what is about it
	[ -e "$huge_1g" ] || return 0
	[ "$(cat "$huge_1g")" -ge 1 ] && return 0
	echo 1 >/proc/sys/vm/compact_memory
	echo 1 >"$huge_1g" && [ "$(cat "$huge_1g")" -ge 1 ]
}

suite_gives_back() {
	echo never >"$shmem_huge"
	[ ! -e "$huge_1g" ] || echo 0 >"$huge_1g"
	for interface in $(vfio_interfaces); do
		vfio_allow "$interface" N
	done
	vfio_give_engines_back
}

# indented: each line at once, a level below
indented() {
	awk '{ print "  " $0; fflush() }'
}

# suite_programs: the report of the suite; what came to a good end is counted in a file, since this runs in a pipe
suite_programs() {
	: >/tmp/suite-good
	plan "$(find "$suites" -type f | wc -l)"
	count=0
	for path in "$suites"/*; do
		count=$((count + 1))
		suite_program "$path" 2>&1 | tee "$report" | indented
		suite_verdict "$count" "${path##*/}"
		# a test that its time limit killed in the middle of a call holds the engine until the call ends
		within 120 suite_ended "${path##*/}"
	done
}

# suite_program PATH: with one engine, or with two if it tests several at a time
suite_program() {
	case "$1" in
	*_init_perf_test) wanted=2 ;;
	*) wanted=1 ;;
	esac
	# shellcheck disable=SC2046 # one word an engine
	"$1" $(echo "$engines" | head -n "$wanted")
}

suite_ended() {
	! pidof "$1" >/dev/null
}

# suite_verdict NUMBER NAME: of the program whose report is in $report
suite_verdict() {
	if reason=$(grep '^1\.\.0 # SKIP' "$report"); then
		echo "ok $1 $2 # SKIP ${reason#*# SKIP }"
		echo "$2 skipped" >>/tmp/suite-good
	elif grep -q '^1\.\.[1-9]' "$report" && ! grep -q '^not ok' "$report"; then
		echo "ok $1 $2"
		echo "$2 passed" >>/tmp/suite-good
	else
		echo "not ok $1 $2"
	fi
}

# suite_passed: whether every program came to a good end, and one of them tested something
suite_passed() {
	[ "$(wc -l </tmp/suite-good)" -eq "$(find "$suites" -type f | wc -l)" ] && grep -q passed /tmp/suite-good
}
