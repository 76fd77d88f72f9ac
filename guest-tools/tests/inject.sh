# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# Functions of the driver fail on demand (Documentation/fault-injection), and whoever called from user space is told with what.
# Begins and ends like vfio.sh.

fail_function=$debugfs/fail_function
# names and numbers that map, attach and sync_map are documented to give
injected_errors="ENOMEM=12 EIO=5 ENOSPC=28"

# has_injection: whether this kernel has it, or must have it by its name
has_injection() {
	case "$kernel" in
	lab*) return 0 ;;
	*) [ -d "$fail_function" ] ;;
	esac
}

# injected_functions: name of a function, and what of pviommu_vfio calls it
injected_functions() {
	echo pviommu_domain_attach --attach attached
	if has_tables; then
		echo pviommu_guest_map --map mapped
	else
		echo pviommu_domain_map --map mapped
		echo pviommu_domain_sync_map --map mapped
	fi
}

inject_plan() {
	echo $((3 + $(injected_functions | wc -l) * $(vfio_interfaces | wc -l)))
}

inject_tests() {
	usage_held >/tmp/usage.inject
	check "an engine goes to vfio-pci, to have its calls fail" inject_begins
	injected_functions >/tmp/injected
	for interface in $(vfio_interfaces); do
		while read -r function option done; do
			check "errors of $function reach user space by $interface as they are" injected "$interface" "$function" "$option" "$done"
		done </tmp/injected
	done
	check "whichever allocation fails, an attach or a map is ENOMEM or whole, and so are its reserved regions" starved
	check "failed calls leave nothing behind, and the DMA API works" inject_ends
}

inject_begins() {
	vfio_load && vfio_take_engines || return 1
	for interface in $(vfio_interfaces); do
		vfio_allow "$interface" Y || return 1
	done
}

inject_ends() {
	for interface in $(vfio_interfaces); do
		vfio_allow "$interface" N || return 1
	done
	vfio_give_engines_back || return 1
	same "$(usage_held)" "$(cat /tmp/usage.inject)"
}

# injected INTERFACE FUNCTION OPTION DONE: FUNCTION fails once with each error, and works afterwards
injected() {
	engine=$(echo "$engines" | head -n 1)
	for error in $injected_errors; do
		fails_once "$2" "${error#*=}" || return 1
		answer=$(pviommu_vfio "--$1" "$3" "$engine")
		echo >"$fail_function/inject"
		same "$answer" "${error%=*}" || return 1
		same "$(pviommu_vfio "--$1" "$3" "$engine")" "$4" || return 1
	done
}

# fails_once FUNCTION ERRNO: its next call does nothing but give this
fails_once() {
	echo "$1" >"$fail_function/inject" || return 1
	printf %#x "-$2" >"$fail_function/$1/retval" || return 1
	# a line in the log with a trace would be a complaint of the kernel's
	echo 0 >"$fail_function/verbose"
	echo 1 >"$fail_function/times"
	echo 100 >"$fail_function/probability"
}

# starved: allocations that may wait fail too, without a line in the log
starved() {
	for kind in failslab fail_page_alloc; do
		echo 0 >"$debugfs/$kind/verbose" && echo N >"$debugfs/$kind/ignore-gfp-wait" || return 1
	done
	echo 0 >"$debugfs/fail_page_alloc/min-order" || return 1
	count=$(pviommu_vfio --starve "$(echo "$engines" | head -n 1)") || { echo "$count" && return 1; }
	# a domain, its table, and what type1 keeps of both
	[ "$count" -ge 10 ] || { echo "only $count allocations failed" && return 1; }
}
