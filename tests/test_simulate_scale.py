"""Many pods on many nodes: what was found out once is not sought again."""

from fractions import Fraction
from typing import Final

from kata_gpu.plan.simulate.answer import Verdict
from kata_gpu.plan.simulate.simulation import STEPS_MAX, simulate
from kata_gpu.plan.simulate.values import (
    Choice,
    Claim,
    Device,
    DeviceClass,
    DeviceId,
    Node,
    Pod,
    PodClaim,
    Request,
    Scenario,
    Slice,
    Where,
)

DRIVER: Final = "gpu.example.com"
COUNT: Final = 360
DEVICES: Final = 32


def slice_of(node: str) -> Slice:
    ids = (DeviceId(DRIVER, node, f"d{number}") for number in range(DEVICES))
    return Slice(
        name=node,
        driver=DRIVER,
        pool=node,
        generation=1,
        count=1,
        where=Where(node=node),
        devices=tuple(Device(id=id_) for id_ in ids),
    )


def test_pods_that_differ_in_their_cpu_alone_search_each_node_once() -> None:
    names = [f"n{number:03}" for number in range(COUNT)]
    every = Choice(name="r", class_name="any", count=DEVICES)
    whole = Claim(name="ns/whole", requests=(Request(name="r", choices=(every,)),))
    pods = tuple(
        Pod(
            name=f"ns/p{number}",
            resources={"cpu": Fraction(number + 1)},
            claims=(PodClaim(name="gpus", template="ns/whole"),),
        )
        for number in range(COUNT)
    )
    found = simulate(
        Scenario(
            nodes=tuple(Node(name=name, resources={"cpu": Fraction(1000)}) for name in names),
            slices=tuple(slice_of(name) for name in names),
            classes=(DeviceClass(name="any", selectors=("device.driver != ''",)),),
            templates=(whole,),
            pods=pods,
        )
    )
    assert COUNT * COUNT // 2 * DEVICES > STEPS_MAX  # who searched each time would not get that far
    assert [(p.verdict, p.node) for p in found.pods] == [(Verdict.PLACED, n) for n in names]
