#!/bin/sh
echo KTAP version 1
echo 1..1
M=/lib/modules-lab
insmod $M/pv_iommu.ko
insmod $M/pv_dmatest.ko
dmesg | tail -30 >&2
for d in /sys/kernel/debug/pv_iommu/*/; do head -50 $d/* >&2; done
cat /sys/kernel/iommu_groups/*/reserved_regions /sys/kernel/iommu_groups/*/type >&2
for d in /sys/kernel/debug/pv_dmatest/*/; do echo 1 > $d/run; cat $d/ktap >&2; done
dmesg | tail -30 >&2
echo ok 1 x
