"""The lab: a virtual machine with a real kernel, an IOMMU and emulated GPUs."""
