# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# VFIO: programs in user space take the engines, by each interface that this kernel has. Begins and ends with the drivers loaded
# and the engines with pviommu_dmatest.

vfio_driver=$drivers/vfio-pci
# every kernel has pages of this size, whatever its usual ones are
vfio_huge=/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages

# vfio_interfaces: those that this kernel has, or must have by its name
vfio_interfaces() {
	echo type1
	case "$kernel" in
	lab*) echo iommufd ;;
	own) { [ -e /dev/iommu ] || [ -e "$modules/iommufd.ko" ]; } && echo iommufd ;;
	esac
	return 0
}

# vfio_plan: how many tests these are
vfio_plan() {
	echo $((5 + 2 * $(vfio_interfaces | wc -l)))
}

vfio_tests() {
	usage_held >/tmp/usage.vfio
	check "vfio-pci is there" vfio_load
	check "an engine that has its own driver cannot be taken" vfio_without_driver
	check "the engines go to vfio-pci" vfio_take_engines
	for interface in $(vfio_interfaces); do
		if [ "$isolated_msi" = 1 ]; then
			check "interrupts are isolated, so $interface asks for no decision" vfio_needs_no_decision "$interface"
		else
			check "without interrupt remapping, $interface asks for a decision" vfio_refuses_unsafe "$interface"
		fi
		vfio_allow "$interface" Y
		# shellcheck disable=SC2046 # one word an engine
		pviommu_vfio "--$interface" --huge $(echo "$engines" | head -n 2) >"$report"
		subtest "VFIO by $interface" "$report"
		vfio_allow "$interface" N
	done
	check "the engines go back to pviommu_dmatest, and the DMA API works" vfio_give_engines_back
	check "nothing is left of VFIO" same "$(usage_held)" "$(cat /tmp/usage.vfio)"
}

vfio_load() {
	# a built-in one has its folder too, for its parameters
	for module in vfio_iommu_type1 vfio_pci; do
		[ -d "/sys/module/$module" ] || modprobe "$module" || return 1
	done
	if vfio_interfaces | grep -q iommufd; then
		[ -e /dev/iommu ] || modprobe iommufd || return 1
	fi
	[ -d "$vfio_driver" ] && [ -c /dev/vfio/vfio ] || { echo "no vfio-pci, or no /dev/vfio/vfio" && return 1; }
	# the kernel sets aside as many as it finds; two are used at a time
	echo 4 >"$vfio_huge" || return 1
	[ "$(cat "$vfio_huge")" -ge 2 ] || { echo "no huge pages" && return 1; }
}

vfio_without_driver() {
	for engine in $engines; do
		for interface in $(vfio_interfaces); do
			same "$engine $interface $(pviommu_vfio "--$interface" --attach "$engine")" "$engine $interface ENOENT" || return 1
		done
	done
}

# vfio_bind DRIVER OVERRIDE: each engine leaves its driver and goes to DRIVER; an empty OVERRIDE is none
vfio_bind() {
	for engine in $engines; do
		echo "$engine" >"$devices/$engine/driver/unbind" || return 1
		echo "$2" >"$devices/$engine/driver_override" || return 1
		echo "$engine" >/sys/bus/pci/drivers_probe || return 1
		same "$engine $(driver_of "$engine")" "$engine $1" || return 1
	done
}

vfio_take_engines() {
	vfio_bind vfio-pci vfio-pci || return 1
	for engine in $engines; do
		group=$(group_of "$engine")
		[ -c "/dev/vfio/${group##*/}" ] || { echo "no /dev/vfio/${group##*/} for $engine" && return 1; }
	done
}

# vfio_allow INTERFACE Y|N: whether it may hand out devices whose interrupts are not remapped
vfio_allow() {
	module=iommufd
	[ "$1" = type1 ] && module=vfio_iommu_type1
	echo "$2" >"/sys/module/$module/parameters/allow_unsafe_interrupts"
}

vfio_refuses_unsafe() {
	vfio_allow "$1" N || return 1
	for engine in $engines; do
		same "$engine $(pviommu_vfio "--$1" --attach "$engine")" "$engine EPERM" || return 1
	done
}

vfio_needs_no_decision() {
	vfio_allow "$1" N || return 1
	for engine in $engines; do
		same "$engine $(pviommu_vfio "--$1" --attach "$engine")" "$engine attached" || return 1
	done
}

vfio_give_engines_back() {
	echo 0 >"$vfio_huge"
	vfio_bind pviommu_dmatest "" && dma_works
}
