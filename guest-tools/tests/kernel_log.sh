# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# What the kernel has to say about the run.

# of the kernel about itself, with lockdep, KASAN and others where it has them
complaints="WARNING:|BUG:|Oops|Call Trace|INFO: |KASAN: |UBSAN: |suspicious RCU|circular locking"
# of the driver about a device that is wrong, which is what a rule may have made it
driver_complaints="is given up|pviommu_[a-z]+ .*failed: -E"
kmemleak=$debugfs/kmemleak
# it does not report what is younger
kmemleak_age=6

kernel_log_plan() {
	if has_kmemleak; then
		echo 2
	else
		echo 1
	fi
}

kernel_log_tests() {
	check "the kernel has nothing to complain about" kernel_is_content
	has_kmemleak && check "kmemleak finds nothing" nothing_is_leaked
}

has_kmemleak() {
	[ "$kernel" = lab-debug ] || [ -e "$kmemleak" ]
}

kernel_is_content() {
	if [ "$adversarial_acted" = 1 ]; then
		! kernel_log | grep -E "$complaints|: leak: "
	else
		! kernel_log | grep -E "$complaints|: leak: |$driver_complaints"
	fi
}

# The first look marks, the second one reports what is still unreferenced.
nothing_is_leaked() {
	echo scan >"$kmemleak" || return 1
	sleep "$kmemleak_age"
	echo scan >"$kmemleak"
	leaks=$(cat "$kmemleak")
	[ -z "$leaks" ] || { echo "$leaks" && return 1; }
}
