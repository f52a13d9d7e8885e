"""What Kubernetes is told of this node's units, and what is advised to it. Pure."""

from kata_gpu.plan.kubernetes.devices import devices, drivers

__all__ = ["devices", "drivers"]
