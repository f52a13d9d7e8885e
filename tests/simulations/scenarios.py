"""Scenarios: what each shows, and the objects of it."""

from collections.abc import Callable
from typing import Any, Final

from tests.simulations.objects import (
    DRA,
    FABRIC,
    GPU,
    NUMA,
    Tree,
    claim,
    class_,
    deployment,
    device,
    exactly,
    first_of,
    gang,
    gpus,
    job,
    kai,
    node,
    pod,
    queue,
    slice_,
    spec,
    template,
    tree,
)

KAI: Final[dict[str, Any]] = {"schedulerName": "kai-scheduler"}
SCENARIOS: dict[str, tuple[str, list[Tree]]] = {}
NUMA_PAIR: Final = [
    device("gpu-0", numa=0),
    device("gpu-1", numa=1),
    device("gpu-2", numa=0),
    device("gpu-3", numa=1),
]
SAME_NUMA: Final = ({"matchAttribute": NUMA},)


def scenario(build: Callable[[], list[Tree]]) -> Callable[[], list[Tree]]:
    """Register a scenario by its function's name."""
    name = build.__name__.replace("_", "-")
    SCENARIOS[name] = ((build.__doc__ or "").strip(), build())
    return build


@scenario
def first_fit_by_slice_and_device() -> list[Tree]:
    """Devices are taken in the order of slices and devices, nodes by name."""
    pair = [
        slice_("n1", gpus(2), name="b", pool={"resourceSliceCount": 2}),
        slice_("n1", [device("gpu-9")], name="a", pool={"resourceSliceCount": 2}),
    ]
    return [*pair, class_(), template("one", exactly()), deployment("serve", 2, spec("one"))]


@scenario
def more_replicas_than_devices() -> list[Tree]:
    """Those that find no device are told who has each."""
    nodes = [slice_("n1", gpus(1)), slice_("n2", gpus(1))]
    return [*nodes, class_(), template("one", exactly()), deployment("serve", 4, spec("one"))]


@scenario
def selector_is_false() -> list[Tree]:
    """A selector that is false is shown with the values it speaks of."""
    wide = f"device.attributes['{GPU}'].linkWidth >= 16"
    large = f"device.capacity['{GPU}'].memory.compareTo(quantity('40Gi')) >= 0"
    small = {**device("gpu-1", linkWidth=16), "capacity": {"memory": {"value": "24Gi"}}}
    return [
        slice_("n1", [device("gpu-0", linkWidth=8), small]),
        class_(),
        template("wide", exactly("gpu", "kata-gpu", wide, large)),
        pod("train", "wide"),
    ]


@scenario
def selector_names_an_attribute_that_one_device_lacks() -> list[Tree]:
    """It fails to evaluate there, which ends the allocation on every node."""
    nodes = [slice_("n1", gpus(1)), slice_("n2", gpus(1, vendor="nvidia"))]
    vendor = f"device.attributes['{GPU}'].vendor == 'nvidia'"
    return [*nodes, class_(), template("one", exactly("gpu", "kata-gpu", vendor)), pod("a", "one")]


@scenario
def selector_with_a_default_for_what_is_absent() -> list[Tree]:
    """With orValue the device without the attribute is passed over."""
    nodes = [slice_("n1", gpus(1)), slice_("n2", gpus(1, vendor="nvidia"))]
    vendor = f"device.attributes['{GPU}'].?vendor.orValue('') == 'nvidia'"
    return [*nodes, class_(), template("one", exactly("gpu", "kata-gpu", vendor)), pod("a", "one")]


@scenario
def selector_that_this_simulation_cannot_evaluate() -> list[Tree]:
    """A function of Kubernetes that is not here makes it undecided, not refused."""
    text = f"device.attributes['{GPU}'].vendor.find('nv') == 'nv'"
    return [
        slice_("n1", gpus(1, vendor="nvidia")),
        class_(),
        template("one", exactly("gpu", "kata-gpu", text)),
        pod("a", "one"),
    ]


@scenario
def taints_and_tolerations() -> list[Tree]:
    """A taint keeps a device from a request, unless it is tolerated or has no effect."""
    devices = [
        device("gpu-0", taints=(f"{GPU}/quarantined=reset:NoSchedule",)),
        device("gpu-1", taints=(f"{GPU}/gone:NoExecute",)),
        device("gpu-2", taints=(f"{GPU}/not-confidential-ready:None",)),
    ]
    tolerant = exactly(tolerations=[{"key": f"{GPU}/quarantined", "operator": "Exists"}])
    return [
        slice_("n1", devices),
        class_(),
        template("plain", exactly()),
        template("tolerant", tolerant),
        pod("first", "plain"),
        pod("second", "plain"),
        pod("third", "tolerant"),
    ]


@scenario
def taint_by_a_rule() -> list[Tree]:
    """A DeviceTaintRule taints what it selects; one without a selector taints nothing."""
    taint = {"key": "example.com/drain", "value": "now", "effect": "NoSchedule"}
    chosen = {"driver": GPU, "device": "gpu-0"}
    return [
        slice_("n1", gpus(1)),
        tree(DRA, "DeviceTaintRule", "drain", spec={"deviceSelector": chosen, "taint": taint}),
        tree(DRA, "DeviceTaintRule", "nothing", spec={"taint": taint}),
        class_(),
        template("one", exactly()),
        pod("a", "one"),
    ]


@scenario
def four_of_one_numa_node() -> list[Tree]:
    """Devices must share an attribute, and two of each value are not three of one."""
    return [
        slice_("n1", NUMA_PAIR),
        class_(),
        template("two", exactly(count=2), constraints=SAME_NUMA),
        template("three", exactly(count=3), constraints=SAME_NUMA),
        pod("pair", "two"),
        pod("many", "three"),
    ]


@scenario
def attribute_that_must_differ() -> list[Tree]:
    """Each device needs a value of its own."""
    apart = ({"distinctAttribute": NUMA},)
    return [
        slice_("n1", NUMA_PAIR),
        class_(),
        template("two", exactly(count=2), constraints=apart),
        template("three", exactly(count=3), constraints=apart),
        pod("many", "three"),
        pod("pair", "two"),
    ]


@scenario
def first_available_falls_back() -> list[Tree]:
    """The second choice is taken where the first cannot be had, and both are told of."""
    bundle = f"device.attributes['{GPU}'].?unit.orValue('') == 'bundle'"
    request = first_of(
        "gpu", exactly("board", "kata-gpu", bundle), exactly("pair", "kata-gpu", count=2)
    )
    return [
        slice_("n1", gpus(3, unit="function")),
        class_(),
        template("either", request),
        pod("first", "either"),
        pod("second", "either"),
    ]


@scenario
def all_of_a_node() -> list[Tree]:
    """All means all that are selected, had by somebody or not."""
    return [
        slice_("n1", gpus(2)),
        slice_("n2", gpus(2)),
        class_(),
        claim("somebody", exactly(), has=(("n1", "gpu-1"),)),
        template("all", exactly(allocationMode="All")),
        deployment("whole", 2, spec("all")),
    ]


@scenario
def bundle_and_its_members() -> list[Tree]:
    """Counters keep a bundle and one of its members from being given at once."""
    counters = [{"name": "units", "counters": {f"gpu-{n}": {"value": "1"} for n in range(2)}}]
    members = [
        {
            **d,
            "consumesCounters": [{"counterSet": "units", "counters": {d["name"]: {"value": "1"}}}],
        }
        for d in gpus(2, unit="function")
    ]
    both = {"counterSet": "units", "counters": counters[0]["counters"]}
    board = {**device("board", unit="bundle"), "consumesCounters": [both]}
    where = f"device.attributes['{GPU}'].unit == "
    two = {"resourceSliceCount": 2}
    return [
        slice_("n1", [*members, board], pool=two),
        slice_("n1", [], name="n1-counters", pool=two, sharedCounters=counters),
        class_(),
        template("member", exactly("gpu", "kata-gpu", f"{where}'function'")),
        template("board", exactly("gpu", "kata-gpu", f"{where}'bundle'")),
        pod("small", "member"),
        pod("large", "board"),
    ]


@scenario
def pool_that_is_being_replaced() -> list[Tree]:
    """Of a pool whose slices are not all there nothing is given."""
    return [
        slice_("n1", gpus(1), pool={"generation": 2, "resourceSliceCount": 2}),
        class_(),
        template("one", exactly()),
        pod("a", "one"),
    ]


@scenario
def claim_that_two_pods_share() -> list[Tree]:
    """The second goes where the first is; a claim without a pod is asked about by itself."""
    return [
        slice_("n1", gpus(1)),
        slice_("n2", gpus(2)),
        class_(),
        claim("common", exactly(count=2)),
        claim("alone", exactly()),
        claim("too-many", exactly(count=9)),
        pod("one", shared=("common",)),
        pod("two", shared=("common",)),
        pod("three", shared=("missing",)),
    ]


@scenario
def class_that_is_not_there() -> list[Tree]:
    """Without its DeviceClass a claim is allocated nowhere."""
    return [slice_("n1", gpus(1)), template("one", exactly()), pod("a", "one")]


@scenario
def admin_access_is_refused() -> list[Tree]:
    """A device in a VM can be shared with nobody."""
    request = exactly(adminAccess=True)
    return [slice_("n1", gpus(1)), class_(), template("one", request), pod("a", "one")]


@scenario
def node_selectors_taints_and_memory() -> list[Tree]:
    """The node is looked at before its devices, with what the RuntimeClass adds."""
    ready = {"kata-gpu.io/ready": "true"}
    runtime = tree(
        "node.k8s.io/v1",
        "RuntimeClass",
        "kata-gpu",
        handler="kata-qemu-nvidia-gpu",
        overhead={"podFixed": {"memory": "10Gi", "cpu": "1"}},
        scheduling={"nodeSelector": ready},
    )
    taint = [{"key": "maintenance", "value": "", "effect": "NoSchedule"}]
    resources = {"cpu": "16", "memory": "64Gi", "pods": "10"}
    small = {**resources, "memory": "32Gi"}
    return [
        runtime,
        node("n1", resources),
        node("n2", resources, labels=ready, taints=taint),
        node("n3", resources, labels=ready, unschedulable=True),
        node("n4", small, labels=ready),
        pod("a", resources={"memory": "24Gi"}, runtimeClassName="kata-gpu"),
        pod("b", resources={"memory": "20Gi"}, runtimeClassName="kata-gpu"),
    ]


@scenario
def device_plugin_resources() -> list[Tree]:
    """Extended resources are counted, and one of a DeviceClass is a claim in truth."""
    return [
        node("n1", {"nvidia.com/pgpu": "2"}),
        slice_("n2", gpus(1)),
        class_("kata-gpu", extendedResourceName="example.com/gpu"),
        pod("plugin", resources={"nvidia.com/pgpu": 2}),
        pod("another", resources={"nvidia.com/pgpu": 1}),
        pod("by-class", resources={"example.com/gpu": 1}),
        pod("by-name", resources={"deviceclass.resource.kubernetes.io/kata-gpu": 1}),
    ]


@scenario
def gang_that_fits() -> list[Tree]:
    """All members of a PodGroup find room."""
    return [
        slice_("n1", gpus(2)),
        slice_("n2", gpus(2)),
        class_(),
        template("two", exactly(count=2)),
        gang("train", 2, queue="team-a"),
        queue("team-a", gpu={"quota": 2, "limit": -1}),
        deployment("train", 2, spec("two", **KAI), **kai("team-a", "train")),
    ]


@scenario
def gang_that_does_not_fit() -> list[Tree]:
    """Who would fit is taken back, and what it had is free for the next."""
    return [
        slice_("n1", gpus(2)),
        slice_("n2", gpus(1)),
        class_(),
        template("two", exactly(count=2)),
        gang("train", 2),
        deployment("train", 2, spec("two", **KAI), **kai("team-a", "train")),
        pod("later", "two"),
    ]


@scenario
def gangs_of_jobs() -> list[Tree]:
    """A Job is a gang by its annotation: of the first all start or none, of the second two do."""
    return [
        slice_("n1", gpus(3)),
        class_(),
        template("one", exactly()),
        queue("team-a", gpu={"quota": 3, "limit": -1}),
        job("whole", 4, spec("one", **KAI), minimum=4, queue="team-a"),
        job("part", 4, spec("one", **KAI), minimum=2, queue="team-a"),
    ]


@scenario
def gang_of_small_and_large() -> list[Tree]:
    """In their order they would not fit; with the large one first they do."""
    return [
        slice_("n1", gpus(2)),
        slice_("n2", gpus(1)),
        class_(),
        template("one", exactly()),
        template("other", exactly()),
        gang("mixed", 2),
        pod("small", "one", metadata=kai("team-a", "mixed"), **KAI),
        pod("large", "one", "other", metadata=kai("team-a", "mixed"), **KAI),
    ]


@scenario
def gang_whose_members_are_in_each_others_way() -> list[Tree]:
    """Whether another node for the first leaves room for the last is undecided."""
    member: Any = {**KAI, "metadata": kai("team-a", "mixed")}
    return [
        node("n1", labels={"left": "yes", "right": "yes"}),
        node("n2", labels={"right": "yes"}),
        node("n3", labels={"left": "yes"}),
        *(slice_(f"n{number}", gpus(1)) for number in (1, 2, 3)),
        class_(),
        template("one", exactly()),
        gang("mixed", 3),
        pod("left", "one", nodeSelector={"left": "yes"}, **member),
        *(pod(f"right-{n}", "one", nodeSelector={"right": "yes"}, **member) for n in (0, 1)),
    ]


@scenario
def gang_with_a_member_for_one_node() -> list[Tree]:
    """In their order they would not fit; with that member first they do."""
    member: Any = {**KAI, "metadata": kai("team-a", "mixed")}
    return [
        node("n1", labels={"zone": "a"}),
        node("n2"),
        slice_("n1", gpus(1)),
        slice_("n2", gpus(1)),
        class_(),
        template("one", exactly()),
        gang("mixed", 2),
        pod("anywhere", "one", **member),
        pod("in-a", "one", nodeSelector={"zone": "a"}, **member),
    ]


@scenario
def gang_with_a_subgroup() -> list[Tree]:
    """A subgroup has a minimum of its own, and those that it needs come first."""
    return [
        slice_("n1", gpus(2)),
        class_(),
        template("one", exactly()),
        gang("job", 2, subGroups=[{"name": "leader", "minMember": 1}]),
        deployment("worker", 2, spec("one", **KAI), **kai("team-a", "job", "worker")),
        pod("leader", "one", metadata=kai("team-a", "job", "leader"), **KAI),
    ]


@scenario
def queues_and_their_shares() -> list[Tree]:
    """A queue stops at its limit and at that of its parent; over its quota it may be reclaimed."""
    resources = {"cpu": "32", "memory": "128Gi", "pods": "100"}
    need = {"cpu": "4", "memory": "8Gi"}
    return [
        node("n1", resources),
        slice_("n1", gpus(8)),
        class_(),
        template("one", exactly()),
        queue("department", gpu={"quota": 4, "limit": 5}),
        queue("team-a", "department", gpu={"quota": 1, "limit": 3}),
        queue("team-b", "department", gpu={"quota": 3, "limit": -1}, cpu={"limit": 8000}),
        deployment("a", 4, spec("one", resources=need, **KAI), **kai("team-a")),
        deployment("b", 3, spec("one", resources=need, **KAI), **kai("team-b")),
        pod("c", "one", metadata=kai("department"), **KAI),
    ]


@scenario
def what_kai_counts_as_a_gpu() -> list[Tree]:
    """A class by its name, exactly requests alone, All as one; nvidia.com/pgpu is none."""
    return [
        node("n1", {"nvidia.com/pgpu": "4", "nvidia.com/gpu": "4", "pods": "100"}),
        slice_("n2", gpus(4)),
        slice_("n2", [device("switch-0")], driver=FABRIC),
        class_(),
        class_("kata-fabric", f"device.driver == '{FABRIC}'"),
        template("two", exactly(count=2)),
        template("either", first_of("gpu", exactly("one"))),
        template("switch", exactly("switch", "kata-fabric")),
        *(queue(name) for name in ("by-class", "either", "switches", "pgpu", "plain")),
        pod("a", "two", metadata=kai("by-class"), **KAI),
        pod("b", "either", metadata=kai("either"), **KAI),
        pod("c", "switch", metadata=kai("switches"), **KAI),
        pod("d", resources={"nvidia.com/pgpu": 2}, metadata=kai("pgpu"), **KAI),
        pod("e", resources={"nvidia.com/gpu": 2}, metadata=kai("plain"), **KAI),
    ]


@scenario
def kai_on_a_node_with_both_kinds_of_gpus() -> list[Tree]:
    """KAI gives no device-plugin GPU where GPUs are in ResourceSlices; the scheduler does."""
    wanted = {"nvidia.com/gpu": 1}
    return [
        node("n1", {"nvidia.com/gpu": "2", "pods": "100"}),
        slice_("n1", gpus(1)),
        pod("by-kai", resources=wanted, metadata=kai("team-a"), **KAI),
        pod("by-default", resources=wanted),
    ]


@scenario
def kai_and_shared_claims() -> list[Tree]:
    """A claim for GPUs that is of no template needs the queue's label itself."""
    return [
        slice_("n1", gpus(2)),
        class_(),
        claim("bare", exactly()),
        claim("labelled", exactly(), labels={"kai.scheduler/queue": "team-a"}),
        pod("a", shared=("bare",), metadata=kai("team-a"), **KAI),
        pod("b", shared=("labelled",), metadata=kai("team-a"), **KAI),
    ]


@scenario
def counters_that_two_nodes_share() -> list[Tree]:
    """What one node's device takes of its pool, another's has not."""
    one = {"counterSet": "board", "counters": {"slots": {"value": "1"}}}
    devices = [
        {**device(f"gpu-{n}"), "nodeName": f"n{n}", "consumesCounters": [one]} for n in (1, 2)
    ]
    sets = [{"name": "board", "counters": {"slots": {"value": "1"}}}]
    both: Tree = {"pool": {"name": "boards", "resourceSliceCount": 2}, "nodeName": None}
    return [
        slice_("a", [], sharedCounters=sets, allNodes=True, **both),
        slice_("b", devices, perDeviceNodeSelection=True, **both),
        class_(),
        template("one", exactly()),
        deployment("serve", 2, spec("one")),
    ]


@scenario
def claim_with_devices_of_two_places() -> list[Tree]:
    """Who shares it is where both are to be reached."""

    def of(label: str) -> Tree:
        term = {"matchExpressions": [{"key": label, "operator": "Exists"}]}
        selector = {"nodeSelectorTerms": [term]}
        return slice_(label, [device(label)], nodeName=None, nodeSelector=selector)

    return [
        node("n1", labels={"rack": "1"}),
        node("n2", labels={"rack": "1", "zone": "a"}),
        of("rack"),
        of("zone"),
        class_(),
        claim("common", exactly(count=2)),
        pod("first", shared=("common",)),
        pod("second", shared=("common",), nodeSelector={"rack": "1"}),
    ]


@scenario
def all_that_breaks_a_constraint_on_one_node() -> list[Tree]:
    """There the allocator gives up for every node, and for the other choices."""
    either = first_of("gpus", exactly("all", allocationMode="All"), exactly("one"))
    return [
        slice_("n1", NUMA_PAIR),
        slice_("n2", [device("gpu-0", numa=0)]),
        class_(),
        template("side", either, constraints=SAME_NUMA),
        pod("a", "side"),
    ]


@scenario
def things_that_are_not_simulated() -> list[Tree]:
    """They are named, and not silently taken as met."""
    spread = [{"maxSkew": 1}]
    return [
        tree("v1", "ConfigMap", "other"),
        tree("scheduling.volcano.sh/v1beta1", "PodGroup", "other"),
        slice_("n1", [{**device("gpu-0"), "bindingConditions": ["example.com/ready"]}]),
        class_(),
        template("one", exactly()),
        pod(
            "a",
            "one",
            nodeSelector={"disk": "ssd"},
            runtimeClassName="kata-gpu",
            topologySpreadConstraints=spread,
            metadata=kai("team-a", "unknown"),
        ),
    ]
