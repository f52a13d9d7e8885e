"""Kubernetes: what it is told of this node's units. Pure."""

from kata_gpu.plan.kubernetes.devices import devices

__all__ = ["devices"]
