"""CDI: what we write, and what every file of the node must hold to for Kata's sake. Pure.

One file that a runtime refuses stops every pod of it that asks for a GPU, whoever wrote it, so
the rules are those of any vendor's file. What a rule is, and what breaks by it, is data: see
`rules`, `schema` and `libraries`.
"""

from kata_gpu.plan.cdi.judging import judge, judge_file
from kata_gpu.plan.cdi.libraries import stopped
from kata_gpu.plan.cdi.resolving import devices
from kata_gpu.plan.cdi.spec import VERSION, all_published, is_ours, path, published, render, without

__all__ = [
    "VERSION",
    "all_published",
    "devices",
    "is_ours",
    "judge",
    "judge_file",
    "path",
    "published",
    "render",
    "stopped",
    "without",
]
