#!/bin/sh
# SPDX-License-Identifier: MIT
#
# net.sh with more of everything: 256 MiB each way, 1,000 connections, 50,000 small packets each way.
#
#     pviommu lab run --topology net --vcpus 2 --timeout 1800 --scenario guest-tools/programs/net-faults.toml \
#         --add guest-tools/programs/net.sh --run guest-tools/programs/net-long.sh

exec net.sh 256 1000 50000
