# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# User space with a driver that sends its maps, after vfio.sh and inject.sh have tried tables of the guest. Part of long
# runs only. Begins and ends like these.

# sent_functions: name of a function that only such a driver calls
sent_functions() {
	echo pviommu_domain_map
	echo pviommu_domain_sync_map
}

sent_plan() {
	if has_injection; then
		echo $((4 + $(sent_functions | wc -l) * $(vfio_interfaces | wc -l)))
	else
		echo 4
	fi
}

sent_tests() {
	usual_tables=$tables
	send_maps "the driver sends maps of user space"
	check "the engines go to vfio-pci, with tables of the device" sent_begins
	for interface in $(vfio_interfaces); do
		vfio_allow "$interface" Y
	done
	# shellcheck disable=SC2046 # one word an engine
	pviommu_vfio --type1 --huge $(echo "$engines" | head -n 2) >"$report"
	subtest "VFIO by type1, with tables of the device" "$report"
	if has_injection; then
		sent_functions >/tmp/injected
		for interface in $(vfio_interfaces); do
			while read -r function; do
				check "errors of $function reach user space by $interface as they are" injected "$interface" "$function" --map mapped
			done </tmp/injected
		done
	fi
	for interface in $(vfio_interfaces); do
		vfio_allow "$interface" N
	done
	tables=$usual_tables
	check "the engines go back, and so does the kind of tables" sent_ends
}

sent_ends() {
	vfio_give_engines_back && unload_all && load_all && dma_works
}

sent_begins() {
	vfio_load && vfio_take_engines
}
