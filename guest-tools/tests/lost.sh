# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# The server stops answering for a while, or for good. Part of long runs only: what ends is a wait.
#
# While the server is stopped, a trapped access (a doorbell, a register) keeps its CPU inside QEMU, for five seconds at
# most. If the server goes on in time, nothing is lost. If not, QEMU takes the late answer for a broken connection, and
# the function is gone for good, as if the server had been killed. A server that is stopped while it polls is not asked
# by trapped access: then it is the driver's own limit that ends the wait.
#
# All this is about drivers that send maps. What is written to tables of the guest needs no device that answers.

moment_seconds=3
stopped_seconds=6
timeout_ms=1000
timeout_parameter=/sys/module/pviommu/parameters/op_timeout_ms

paused_plan() {
	echo $((16 + $(must_send)))
}

# must_send: 1 if the driver has to be loaded anew for that, else 0
must_send() {
	if has_tables; then
		echo 1
	else
		echo 0
	fi
}

send_maps_first() {
	! has_tables || send_maps "the driver sends maps, so that it notices a device that does not answer"
}

paused_tests() {
	usual_tables=$tables
	send_maps_first
	before=$(log_lines)
	check "the server is stopped for a moment" request stop-server "$moment_seconds"
	check "DMA goes on after that moment" dma_works
	check "nothing was given up for it" is_not_given_up
	echo "$timeout_ms" >"$timeout_parameter"
	lost_suite paused &
	check "the server is stopped while it works" stop_busy_server
	wait $!
	subtest "the DMA API while the server is stopped" "$report"
	check "the driver gives the device up once or not at all" is_given_up_at_most_once
	check "after a reload of the drivers everything works again" works_again
	frozen
	give_up_in_dma
	tables=$usual_tables
}

# Neither runs, so no time passes that the device could have used.
frozen() {
	before=$(log_lines)
	subject=$(echo "$engines" | head -n 1)
	check "a group is strict, so that many wait" set_type DMA
	echo "$timeout_ms" >"$timeout_parameter"
	lost_suite paused &
	check "guest and server are stopped together" freeze_busy_server
	wait $!
	subtest "the DMA API in a guest that stood still" "$report"
	check "nothing is given up after standing still together" is_not_given_up
}

freeze_busy_server() {
	idle=$(commands)
	within 10 is_busy || { echo "the storm does not begin" && return 1; }
	request freeze "$moment_seconds"
}

# The server goes on: what it was to do for memory that is not mapped any more must not happen.
give_up_in_dma() {
	before=$(log_lines)
	check "the server is stopped while DMA is queued" stop_server_in_dma
	subtest "DMA that was queued when the device was given up" "$report"
	check "the device is given up once, and DMA is stopped by a reset" is_given_up_and_reset
	check "after unbind and bind, without a reload, DMA works" works_after_rebind
	check "a group is back at its type" type_is_set_back
}

# The last ones of a second kernel, whose groups are not translated by default.
stopped_plan() {
	echo $((6 + $(must_send)))
}

stopped_tests() {
	lose_device "the server is stopped for longer than QEMU waits" stop-server "$stopped_seconds"
}

killed_plan() {
	echo $((6 + $(must_send)))
}

killed_tests() {
	lose_device "the server is killed" kill-server
}

# lose_device NAME REQUEST...
lose_device() {
	send_maps_first
	before=$(log_lines)
	echo "$timeout_ms" >"$timeout_parameter"
	subject=$(echo "$engines" | head -n 1)
	check "a group is translated for the last tests" change_type DMA strict
	name=$1
	shift
	check "$name" request "$@"
	lost_suite lost
	subtest "the DMA API of a device that is lost" "$report"
	check "the driver gives the lost device up once" is_given_up_once
	check "the drivers of a lost device can be unloaded" unload_all
	check "no driver binds to a lost device" lost_device_is_refused
}

# lost_suite NAME: maps and unmaps. DMA is left out: registers of the engine do not answer either.
lost_suite() {
	run_ktap "$debugfs/pviommu_dmatest/$(echo "$engines" | head -n 1)" "$1"
}

# commands: how many the driver has sent
commands() {
	usage | awk '/^(posted|waited) / { sum += $2 } END { print sum }'
}

# Each look at it is a command too, of which there are 100 at most.
is_busy() {
	[ "$(commands)" -gt $((idle + 300)) ]
}

stop_busy_server() {
	idle=$(commands)
	within 10 is_busy || { echo "the storm does not begin" && return 1; }
	request stop-server "$moment_seconds"
}

# A server that is stopped while it sleeps keeps whoever rings inside QEMU, and then goes on: nothing is given up.
stop_server_in_dma() {
	tries=5
	while [ "$(times_given_up)" = 0 ]; do
		[ "$tries" -gt 0 ] || { echo "the device was never given up" && return 1; }
		tries=$((tries - 1))
		lost_suite queued &
		sleep 2
		request stop-server "$moment_seconds" || return 1
		wait $!
	done
}

is_given_up_and_reset() {
	is_given_up_once || return 1
	same "$(log_since "$before" | grep -c "is stopped by a reset")" 1
}

works_after_rebind() {
	echo "$iommu" >"$drivers/pviommu/unbind" && echo "$iommu" >"$drivers/pviommu/bind" || return 1
	for engine in $engines; do
		has_driver "$engine" || echo "$engine" >"$drivers/pviommu_dmatest/bind" || return 1
	done
	# the device sleeps by then, and asks for the first doorbell of each ring
	sleep 1
	dma_works
}

type_is_set_back() {
	[ "$(type_of "$subject")" = "$(type_of_mode)" ] || set_type "$(type_of_mode)" || return 1
	dma_works && is_quiet
}

times_given_up() {
	log_since "$before" | grep -c "is given up"
}

is_quiet() {
	! log_since "$before" | grep -E "$complaints"
}

is_not_given_up() {
	same "$(times_given_up)" 0 && is_quiet
}

is_given_up_once() {
	same "$(times_given_up)" 1 && is_quiet
}

is_given_up_at_most_once() {
	[ "$(times_given_up)" -le 1 ] && is_quiet
}

works_again() {
	unload_all && load_all && dma_works && engines_have_groups
}

lost_device_is_refused() {
	insmod "$modules/pviommu.ko" || return 1
	same "$iommu $(driver_of "$iommu")" "$iommu " || return 1
	rmmod pviommu && is_quiet
}
