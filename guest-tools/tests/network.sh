# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# A NIC beside the PV-IOMMU, not behind it: Linux leaves it alone, and its DMA works as if there were no IOMMU.

virtio_vendor=0x1af4
class_ethernet=0x020000
guest_address=10.0.2.15/24
# the user network of QEMU answers for it
gateway=10.0.2.2

network_plan() {
	echo 2
}

network_tests() {
	nic=$(find_nic)
	check "a NIC that is not behind the IOMMU stays unmanaged" nic_is_unmanaged
	check "the DMA of that NIC works" nic_works
}

find_nic() {
	for folder in "$devices"/*; do
		[ "$(cat "$folder/vendor") $(cat "$folder/class")" = "$virtio_vendor $class_ethernet" ] || continue
		is_card "${folder##*/}" || echo "${folder##*/}"
	done
}

nic_is_unmanaged() {
	[ -n "$nic" ] || { echo "there is no virtio NIC" && return 1; }
	modprobe virtio_net || return 1
	same "$nic $(driver_of "$nic") $(group_of "$nic")" "$nic virtio-pci " || return 1
	[ ! -e "$devices/$nic/iommu" ] || { echo "$nic has an IOMMU" && return 1; }
}

nic_works() {
	within 5 ls "$devices/$nic"/virtio*/net/* >/tmp/listing || return 1
	interface=$(basename "$(ls -d "$devices/$nic"/virtio*/net/*)")
	ip address replace "$guest_address" dev "$interface" && ip link set "$interface" up || return 1
	ping -c 1 -W 10 "$gateway"
}
