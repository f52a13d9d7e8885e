"""What Kubernetes is told of units and bundles: names, health, attributes, counters, taints.

Limits: resource.k8s.io/v1 types.go and validation.go.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_gpu.agent import node
from kata_gpu.model.blueprint import Blueprint, Mode, Pool, Selector
from kata_gpu.model.confidential import CcMode
from kata_gpu.model.inventory import Inventory
from kata_gpu.model.kubernetes import (
    FABRIC_DRIVER,
    GPU_DRIVER,
    BindWhen,
    Device,
    Door,
    Effect,
    Taint,
)
from kata_gpu.model.ledger import Ledger, LedgerEntry, OriginalFunction, Stage
from kata_gpu.model.pci import Bar, Binding, Link, PciFunction, PhysicalFunction, VirtualFunction
from kata_gpu.model.platform import Tee
from kata_gpu.model.report import UnitFunction, UnitStatus
from kata_gpu.model.unit import UnitState
from kata_gpu.plan import kubernetes
from kata_gpu.settings import blueprint
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.passthrough import SETTINGS, journal_of
from tests.plans import blueprints
from tests.plans.bundles import BOARD
from tests.plans.claims import ON_CLAIM
from tests.values import PLATFORM, SWITCH_CLASS, address, function, inventory_of

GPU: Final = "0000:01:00.0"
HEALTHY: Final = {UnitState.AVAILABLE, UnitState.IN_USE, UnitState.UNCLAIMED}
POOL: Final = Pool(
    name="gpus",
    mode=Mode.PASSTHROUGH,
    selectors=(Selector(vendor=0x10DE),),
    resource="nvidia.com/pgpu",
    door=Door.DRA,
)
CDI_DIRECTORY: Final = SETTINGS.cdi_directory


def on_a_node(
    kernel: FakeKernel, text: str, claimed: frozenset[str] = frozenset()
) -> tuple[Device, ...]:
    """Return the devices of a node that an agent has brought in order."""
    wanted, journal = blueprint.parse(text), journal_of(kernel.host)
    turn = node.converge(kernel.host, SETTINGS, wanted, journal, claimed=claimed)
    report = turn.report
    state = node.describe(turn, SETTINGS, wanted, journal.ledger, number=1, last_report=report)
    return kubernetes.devices(
        wanted, turn.inventory, journal.ledger, state.units, cdi_directory=CDI_DIRECTORY
    )


def status(*functions: PciFunction, state: UnitState = UnitState.AVAILABLE) -> UnitStatus:
    primary = functions[0]
    members = (UnitFunction(address=f.address, label=f.label, binding=f.binding) for f in functions)
    return UnitStatus(
        id=str(primary.address),
        state=state,
        reason="so it is",
        pool="gpus",
        resource="nvidia.com/pgpu",
        groups=(1,),
        numa_node=primary.numa_node,
        functions=tuple(members),
        nodes=(f"/dev/vfio/{primary.address.bus}",),
        holders=(),
        cleaned=None,
    )


def devices(
    *units: UnitStatus | PciFunction, pool: Pool = POOL, known: Inventory | None = None
) -> tuple[Device, ...]:
    found = [u if isinstance(u, UnitStatus) else status(u) for u in units]
    functions = [u for u in units if isinstance(u, PciFunction)]
    return kubernetes.devices(
        Blueprint(version="test", pools=(pool,)),
        known or inventory_of(*functions),
        Ledger(),
        found,
        cdi_directory=CDI_DIRECTORY,
    )


def one(found: PciFunction, *, pool: Pool = POOL, **platform: Any) -> Device:
    known = inventory_of(found, platform=replace(PLATFORM, **platform))
    (device,) = devices(status(found), pool=pool, known=known)
    return device


# Units


def test_a_unit_is_one_device_by_its_pools_door(tmp_path: Path) -> None:
    kernel = nodes.gpu_with_audio(tmp_path)
    (device,) = on_a_node(kernel, blueprints.blueprint(blueprints.GPUS))
    assert (device.id, device.name) == (GPU, "0000-01-00-0")
    assert (device.door, device.driver) == (Door.DEVICE_PLUGIN, GPU_DRIVER)
    assert device.is_healthy
    assert device.is_ready
    assert device.nodes == ("/dev/vfio/1",)
    assert device.units == (GPU,)
    assert device.cdi_names == ("nvidia.com/pgpu=0000:01:00.0",)
    assert device.counts == {}
    assert device.taints == ()
    assert device.path == ("0000:00:01.0",)


def test_what_is_not_passed_through_or_not_offered_is_no_device(tmp_path: Path) -> None:
    tables = (
        blueprints.host("mine", nodes.HGX_GPUS[0]),
        blueprints.passthrough("quiet", nodes.HGX_GPUS[1]) + 'offer = "none"\n',
        blueprints.passthrough("loud", nodes.HGX_GPUS[2]),
    )
    found = on_a_node(nodes.hgx(tmp_path), blueprints.blueprint(*tables))
    assert [device.id for device in found] == [nodes.HGX_GPUS[2]]


def test_switches_have_a_driver_of_their_own(tmp_path: Path) -> None:
    text = blueprints.blueprint(blueprints.SWITCHES, blueprints.GPUS)
    found = {d.id: d for d in on_a_node(nodes.hgx(tmp_path), text)}
    assert found[nodes.HGX_SWITCH].driver == FABRIC_DRIVER
    assert found[nodes.HGX_SWITCH].resource == "nvidia.com/nvswitch"
    assert "confidential" not in found[nodes.HGX_SWITCH].attributes
    assert {found[gpu].driver for gpu in nodes.HGX_GPUS} == {GPU_DRIVER}
    assert {d.attributes["board"] for d in found.values()} == {"0000:41:00.0"}


def test_devices_are_in_the_order_of_their_ids(tmp_path: Path) -> None:
    found = on_a_node(nodes.hgx(tmp_path), blueprints.blueprint(blueprints.GPUS))
    assert [d.id for d in found] == list(nodes.HGX_GPUS)


@pytest.mark.parametrize("state", UnitState)
def test_a_unit_that_cannot_be_given_is_tainted_and_nobody_is_evicted(state: UnitState) -> None:
    gpu = function("01:00.0")
    (device,) = devices(status(gpu, state=state), known=inventory_of(gpu))
    assert device.is_healthy == (state in HEALTHY)
    assert device.is_ready == (state in HEALTHY - {UnitState.UNCLAIMED})
    expected = Taint(key=f"{GPU_DRIVER}/{state}", value="true", effect=Effect.NO_SCHEDULE)
    assert device.taints == (() if state in HEALTHY else (expected,))
    assert device.nodes == (("/dev/vfio/1",) if device.is_ready else ())


def test_a_unit_whose_function_is_gone_is_no_device() -> None:
    gpu, other = function("01:00.0"), function("02:00.0", group=2)
    found = devices(status(gpu), status(other), known=inventory_of(other))
    assert [device.id for device in found] == [str(other.address)]


# Bound on claim


def test_a_claim_changes_no_attribute_of_its_unit(tmp_path: Path) -> None:
    kernel, text = nodes.single_gpu(tmp_path), blueprints.blueprint(ON_CLAIM)
    (before,) = on_a_node(kernel, text)
    (claimed,) = on_a_node(kernel, text, frozenset({GPU}))
    (after,) = on_a_node(kernel, text)
    assert before.attributes == claimed.attributes == after.attributes
    assert before.attributes["driver"] == "nvidia"
    assert "ready" not in before.attributes
    assert before.taints == claimed.taints == ()
    assert [d.is_ready for d in (before, claimed, after)] == [False, True, False]
    assert [d.is_healthy for d in (before, claimed, after)] == [True] * 3


# Bundles


def test_through_the_device_plugin_a_bundle_stands_for_its_units(tmp_path: Path) -> None:
    (bundle,) = on_a_node(nodes.hgx(tmp_path), blueprints.blueprint(BOARD))
    assert (bundle.id, bundle.name, bundle.is_bundle) == ("hgx", "hgx", True)
    assert bundle.units == (*nodes.HGX_GPUS, nodes.HGX_SWITCH)
    assert bundle.is_healthy
    assert bundle.is_ready
    assert bundle.nodes == tuple(f"/dev/vfio/{n}" for n in (3, 5, 7, 9, 11))
    assert bundle.cdi_names == ("nvidia.com/pgpu=hgx",)
    assert bundle.attributes["gpuCount"] == 4
    assert bundle.attributes["unit"] == "bundle"
    assert bundle.numa_node == 1
    assert bundle.path == ("0000:40:01.0", "0000:41:00.0")
    assert bundle.counts == {}


def test_in_dra_a_bundle_and_its_units_take_the_same_counters(tmp_path: Path) -> None:
    text = blueprints.blueprint(BOARD + 'offer = "dra"\n')
    found = {d.id: d for d in on_a_node(nodes.hgx(tmp_path), text)}
    bundle = found["hgx"]
    assert bundle.driver == GPU_DRIVER
    for gpu in nodes.HGX_GPUS:
        (name,) = found[gpu].counts
        assert name == f"fn-{found[gpu].name}"
        assert bundle.counts[name] == found[gpu].counts[name] == 1
    assert bundle.cdi_names == tuple(
        f"nvidia.com/pgpu={unit}" for unit in (*nodes.HGX_GPUS, nodes.HGX_SWITCH)
    )


def test_a_switch_of_a_bundle_with_gpus_is_not_to_be_had_alone(tmp_path: Path) -> None:
    text = blueprints.blueprint(BOARD + 'offer = "dra"\n')
    found = [d.id for d in on_a_node(nodes.hgx(tmp_path), text)]
    assert found == [*nodes.HGX_GPUS, "hgx"]


def test_a_bundle_is_what_the_least_of_its_units_is(tmp_path: Path) -> None:
    kernel = nodes.hgx(tmp_path)
    card = kernel.tree.show_device(nodes.HGX_GPUS[2], "drm/card2", "dri/card2", "/dev/full")
    with kernel.process("python3", card):
        (bundle,) = on_a_node(kernel, blueprints.blueprint(BOARD))
    assert not bundle.is_healthy
    assert not bundle.is_ready
    assert bundle.nodes == ()
    assert bundle.reason.startswith(f"{nodes.HGX_GPUS[2]}: it is in use")
    assert [t.key for t in bundle.taints] == [f"{GPU_DRIVER}/waiting"]


def test_a_bundle_that_lacks_a_unit_is_there_and_unhealthy(tmp_path: Path) -> None:
    kernel, text = nodes.hgx(tmp_path), blueprints.blueprint(BOARD)
    on_a_node(kernel, text)
    kernel.unplug(nodes.HGX_GPUS[2])
    (bundle,) = on_a_node(kernel, text)
    assert not bundle.is_healthy
    assert bundle.nodes == ()
    assert bundle.reason == "pool gpus has 4 of at least 5 units"
    assert [t.key for t in bundle.taints] == [f"{GPU_DRIVER}/incomplete"]


def test_a_bundle_whose_cdi_device_is_not_written_is_not_ready() -> None:
    gpu = function("01:00.0")
    pool = replace(POOL, bundle="all", door=Door.DEVICE_PLUGIN)
    (bundle,) = devices(status(gpu), pool=pool, known=inventory_of(gpu))
    assert bundle.is_healthy
    assert not bundle.is_ready


# Physical and virtual functions


def test_a_physical_function_takes_the_counters_of_its_virtual_ones() -> None:
    physical = replace(
        function("01:00.0"), sriov=PhysicalFunction(total_vfs=4, active_vfs=2, probes_vfs=True)
    )
    slices = [
        replace(function(f"01:00.{n}", group=n + 1), sriov=VirtualFunction(physical.address))
        for n in (1, 2)
    ]
    alone = function("02:00.0", group=9)
    found = {d.id: d for d in devices(physical, *slices, alone)}
    ours = {d.name: set(d.counts) for d in found.values()}
    assert ours["0000-01-00-1"] == {"fn-0000-01-00-1"}
    assert ours["0000-01-00-2"] == {"fn-0000-01-00-2"}
    assert ours["0000-01-00-0"] >= ours["0000-01-00-1"] | ours["0000-01-00-2"]
    assert ours["0000-02-00-0"] == set()
    assert found["0000:01:00.1"].attributes["unit"] == "virtual-function"


# Attributes

H100: Final = "GH100 [H100 SXM5 80GB]"


KNOWN: Final = replace(
    function("01:00.0", product_name=H100, vfio_cdev="vfio0"),
    bridges=(address("00:01.0"),),
    bars=(
        Bar(index=0, size_bytes=16 << 20, is_prefetchable=False, is_64_bit=True),
        Bar(index=1, size_bytes=128 << 30, is_prefetchable=True, is_64_bit=True),
    ),
    link=Link(speed_gt_s=2.5, width=8, max_speed_gt_s=32.0, max_width=16),
    binding=replace(function("01:00.0").binding, driver="vfio-pci"),
    is_on_vfio=True,
)
"""A GPU of which everything is known."""


def test_a_gpu_says_what_it_is() -> None:
    device = one(KNOWN, iommufd=True, tees=(Tee.SEV_SNP,))
    assert device.attributes == {
        "resource.kubernetes.io/pcieRoot": "pci0000:00",
        "resource.kubernetes.io/pciBusID": "0000:01:00.0",
        "resource.kubernetes.io/numaNode": 0,
        "vendor": "nvidia",
        "device": "2330",
        "productName": H100,
        "architecture": "hopper",
        "iommuGroup": 1,
        "unit": "function",
        "pool": "gpus",
        "gpuCount": 1,
        "linkGeneration": 5,
        "linkWidth": 16,
        "ccCapable": True,
        "teeReady": True,
        "confidential": True,
        "driver": "vfio-pci",
        "iommufd": True,
        "bind": "always",
        "ready": True,
        "resetMethod": "flr",
        "board": "0000:00:01.0",
    }
    assert device.capacity_bytes == {"memory": 80 * 10**9, "barSize": 128 << 30}


@pytest.mark.parametrize(
    ("name", "architecture", "capable"),
    [
        (H100, "hopper", True),
        ("GB100 [B200]", "blackwell", True),
        ("GB202GL [RTX PRO 6000 Blackwell Server Edition]", "blackwell", None),
        ("AD102GL [L40S]", "ada", False),
        ("GA100 [A100 SXM4 40GB]", "ampere", False),
        ("TU102 [GeForce RTX 2080 Ti]", "turing", False),
        ("GV100GL [Tesla V100 SXM2 32GB]", "volta", False),
        ("Device 2330", None, None),
        (None, None, None),
    ],
)
def test_chip_and_confidential_mode_are_read_from_the_name(
    name: str | None, architecture: str | None, capable: bool | None
) -> None:
    found = one(function("01:00.0", product_name=name)).attributes
    assert found.get("architecture") == architecture
    assert found.get("ccCapable") == capable
    assert found.get("productName") == name


@pytest.mark.parametrize(
    ("name", "memory"),
    [
        (H100, 80),
        ("AD102GL [L40S]", None),
        ("GH100 [GH200 120GB / 480GB]", None),
        ("GA100 [A100 SXM4 40 GB]", 40),
        ("GA100 [99999GB]", None),
    ],
)
def test_memory_is_known_where_the_name_says_one_size(name: str, memory: int | None) -> None:
    found = one(function("01:00.0", product_name=name)).capacity_bytes
    assert found.get("memory") == (None if memory is None else memory * 10**9)


def test_what_a_driver_says_of_memory_goes_before_the_name() -> None:
    gpu = replace(function("01:00.0", product_name=H100), memory_bytes=85_520_809_984)
    assert one(gpu).capacity_bytes["memory"] == 85_520_809_984


@pytest.mark.parametrize("pool", [POOL, replace(POOL, bind=BindWhen.ON_CLAIM)])
@pytest.mark.parametrize("driver", ["amdgpu", "nvidia"])
def test_what_its_driver_said_is_remembered_while_it_is_ours(pool: Pool, driver: str) -> None:
    gpu = replace(function("01:00.0", product_name=H100), is_on_vfio=True)
    original = OriginalFunction(
        address=gpu.address,
        vendor=gpu.vendor,
        device=gpu.identity.device,
        original=Binding(driver=driver, override=None),
        memory_bytes=68_719_476_736,
    )
    entry = LedgerEntry(unit=GPU, stage=Stage.BOUND, functions=(original,), cc_mode=CcMode.ON)
    (device,) = kubernetes.devices(
        Blueprint(version="test", pools=(pool,)),
        inventory_of(gpu),
        Ledger(entries=(entry,)),
        [status(gpu)],
        cdi_directory=CDI_DIRECTORY,
    )
    is_on_claim = pool.bind is BindWhen.ON_CLAIM
    is_told_always = driver == "amdgpu"  # and NVML only when a claim takes the GPU
    known = 68_719_476_736 if is_told_always or not is_on_claim else 80 * 10**9
    assert device.capacity_bytes["memory"] == known
    assert device.attributes.get("ccMode") == (None if is_on_claim else "on")


@pytest.mark.parametrize(
    ("platform", "name", "expected"),
    [
        ({"iommufd": True, "tees": (Tee.TDX,)}, H100, True),
        ({"iommufd": False, "tees": (Tee.TDX,)}, H100, False),
        ({"iommufd": True, "tees": ()}, H100, False),
        ({"iommufd": True, "tees": (Tee.TDX,)}, "AD102GL [L40S]", False),
        ({"iommufd": True, "tees": (Tee.TDX,)}, None, False),
    ],
)
def test_confidential_is_what_a_confidential_vm_could_have(
    platform: dict[str, Any], name: str | None, expected: bool
) -> None:
    device = one(function("01:00.0", product_name=name), **platform)
    assert device.attributes["confidential"] is expected
    told = [taint for taint in device.taints if taint.key.endswith("/not-confidential-ready")]
    assert bool(told) == (bool(platform["tees"]) and not expected)
    assert all(taint.effect is Effect.NONE for taint in told)


def test_a_bound_function_without_a_character_device_has_no_iommufd() -> None:
    bound = replace(function("01:00.0", product_name=H100), is_on_vfio=True)
    assert one(bound, iommufd=True).attributes["iommufd"] is False


def test_what_has_no_four_digit_domain_has_no_bus_id() -> None:
    found = one(function("10000:01:00.0")).attributes
    assert "resource.kubernetes.io/pciBusID" not in found


def test_a_root_that_is_no_pci_host_bridge_is_not_told() -> None:
    found = one(replace(function("01:00.0"), root="platform/PNP0A08:00")).attributes
    assert "resource.kubernetes.io/pcieRoot" not in found


def test_a_vendor_without_a_name_is_told_by_its_id() -> None:
    assert one(function("01:00.0", vendor=0x1EDC)).attributes["vendor"] == "1edc"


# Limits

NAME: Final = re.compile(r"([a-z0-9.-]{1,63}/)?[A-Za-z_][A-Za-z0-9_]{0,31}")
LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
BUS_ID: Final = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]")
TAINT_KEY: Final = re.compile(r"[a-z0-9.-]{1,253}/[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")

texts = st.none() | st.text(max_size=200)
functions = st.builds(
    lambda where, name, driver, reset, group, switch, bar: replace(
        function(
            f"{where >> 16:04x}:{where >> 8 & 0xFF:02x}:{where >> 3 & 0x1F:02x}.{where & 7}",
            SWITCH_CLASS if switch else 0x030200,
            product_name=name,
            group=group,
        ),
        reset_methods=(reset,) if reset else (),
        root=driver or "",
        binding=replace(function("01:00.0").binding, driver=driver),
        bars=(Bar(index=0, size_bytes=bar, is_prefetchable=True, is_64_bit=True),),
    ),
    st.integers(0, (1 << 48) - 1),
    texts | st.just(H100),
    texts,
    texts,
    st.none() | st.integers(0, 1000),
    st.booleans(),
    st.integers(0, 1 << 62),
)
pools = st.builds(
    lambda door, bind, bundle: replace(POOL, door=door, bind=bind, bundle=bundle),
    st.sampled_from((Door.DEVICE_PLUGIN, Door.DRA)),
    st.sampled_from(BindWhen),
    st.sampled_from((None, "hgx")),
)


@given(
    st.lists(functions, min_size=1, max_size=8, unique_by=lambda f: f.address),
    pools,
    st.lists(st.sampled_from(UnitState), min_size=8, max_size=8),
    st.randoms(use_true_random=False),
)
@settings(max_examples=80, deadline=None)
def test_whatever_a_node_says_the_limits_of_a_resource_slice_hold(
    found: list[PciFunction], pool: Pool, states: list[UnitState], order: Any
) -> None:
    units = [status(f, state=state) for f, state in zip(found, states, strict=False)]
    known = inventory_of(*found, platform=replace(PLATFORM, tees=(Tee.TDX,)))
    told = devices(*units, pool=pool, known=known)
    order.shuffle(units)
    assert told == devices(*units, pool=pool, known=known)
    assert len({(d.driver, d.name) for d in told}) == len(told)
    assert len({d.id for d in told}) == len(told)
    for device in told:
        _holds(device)


def _holds(device: Device) -> None:
    assert LABEL.fullmatch(device.name)
    assert len(device.attributes) + len(device.capacity_bytes) <= 32
    assert len(device.taints) <= 16
    assert len({(taint.key, taint.effect) for taint in device.taints}) == len(device.taints)
    for name in (*device.attributes, *device.capacity_bytes):
        assert NAME.fullmatch(name)
    for value in device.attributes.values():
        assert isinstance(value, bool | int) or (
            0 < len(value) <= 64 and value.isascii() and value.isprintable()
        )
    for counter in device.counts:
        assert LABEL.fullmatch(counter)
    for taint in device.taints:
        assert TAINT_KEY.fullmatch(taint.key)
    bus_id = device.attributes.get("resource.kubernetes.io/pciBusID")
    assert bus_id is None or BUS_ID.fullmatch(str(bus_id))
