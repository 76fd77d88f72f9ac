"""Running a program of any language on the model of /dev/iommu: a library takes its files and requests to a server."""
