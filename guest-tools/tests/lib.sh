# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# KTAP for shell tests. A file of tests calls "check NAME COMMAND..." and ends with "finish"; what COMMAND prints
# becomes diagnostics of a failure. Standard output carries nothing but the report.

number=0
failures=0
newline="
"

# plan N
plan() {
	echo "KTAP version 1"
	echo "1..$1"
}

# verdict STATUS NAME
verdict() {
	number=$((number + 1))
	if [ "$1" -eq 0 ]; then
		echo "ok $number $2"
	else
		failures=$((failures + 1))
		echo "not ok $number $2"
	fi
}

# check NAME COMMAND...: one test
check() {
	name=$1
	shift
	output=$("$@" 2>&1)
	status=$?
	if [ "$status" -ne 0 ] && [ -n "$output" ]; then
		echo "$output" | head -n 40 | sed 's/^/# /'
	fi
	verdict "$status" "$name"
}

# subtest NAME FILE: a whole report as one test, which it fails if it has a failure or no plan
subtest() {
	sed 's/^/  /' "$2"
	grep -q '^1\.\.[1-9]' "$2" && ! grep -q '^not ok' "$2"
	verdict $? "$1"
}

# finish: 0 if no test failed
finish() {
	[ "$failures" -eq 0 ]
}

# same GOT WANT: whether two texts are the same, and if not, both
same() {
	[ "$1" = "$2" ] && return 0
	echo "got:"
	echo "$1"
	echo "expected:"
	echo "$2"
	return 1
}

# within SECONDS COMMAND...: tries COMMAND until it succeeds, for so long
within() {
	tries=$(($1 * 10))
	shift
	until "$@"; do
		tries=$((tries - 1))
		[ "$tries" -gt 0 ] || return 1
		usleep 100000
	done
}

# request NAME [ARGUMENT]: has the host do something; it answers on the channel of the report
request() {
	echo "# lab: request $*" >&3
	read -r answer <&3 || { echo "the host closed the channel" && return 1; }
	same "$answer" "done $1"
}

# kernel_log: everything that the kernel has said since it started, also what its own buffer has dropped since
log=/tmp/kernel-log
kernel_log() {
	dmesg -c >>"$log"
	cat "$log"
}

# log_lines: how long that is; log_since LINES: what came after
log_lines() {
	kernel_log | wc -l
}

log_since() {
	kernel_log | tail -n "+$(($1 + 1))"
}
