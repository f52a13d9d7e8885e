"""Answer "why does this pod not get its GPU?" from what its node knows. Pure."""

from kata_gpu.plan.pods.explaining import explain

__all__ = ["explain"]
