"""The agent on a real kernel: what it sees, what it refuses, what it moves and gives back."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kata_gpu.act.journal import Journal
from kata_gpu.agent import node
from kata_gpu.discover.inventory import collect
from kata_gpu.host import Host
from kata_gpu.model.iommu import judge
from kata_gpu.model.ledger import Ledger, LedgerEntry, OriginalFunction, Stage
from kata_gpu.model.pci import Bar, Binding, PciAddress, PhysicalFunction, VirtualFunction
from kata_gpu.model.plan import LoadModule, MakeVirtuals, Move, MoveGroup
from kata_gpu.model.platform import IommuKind
from kata_gpu.model.unit import UnitState
from tests.in_guest import (
    DEVICES,
    Agent,
    at,
    driver,
    override,
    pool,
    running_daemon,
    wait_for,
    write_files,
)
from tests.lab import pod_vm
from tests.lab.inside import Machine


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[list[Agent]]:
    """Give back whatever the test's agents took."""
    made: list[Agent] = []
    yield made
    for agent in made:
        assert not agent.release().failures


def agent_for(agents: list[Agent], tmp_path: Path, pools: str) -> Agent:
    agent = Agent(tmp_path / f"agent-{len(agents)}", pools)
    agents.append(agent)
    return agent


@pytest.mark.lab
def test_the_inventory_tells_what_the_kernel_shows(machine: Machine) -> None:
    found = collect(Host.at())
    functions = {str(f.address): f for f in found.functions}
    assert found.problems == ()
    assert found.platform.iommu is IommuKind.INTEL
    assert found.platform.interrupt_remapping is True
    assert found.platform.kernel_release == os.uname().release
    gpu = functions[machine.address("gpu")]
    assert (gpu.vendor, gpu.identity.device, gpu.class_code) == (0x10DE, 0x2330, 0x030200)
    assert (gpu.subsystem_vendor, gpu.subsystem_device, gpu.revision) == (0x10DE, 0x16C1, 0xA1)
    assert gpu.product_name is not None
    assert "H100" in gpu.product_name
    assert gpu.binding.driver == "bochs-drm"
    assert gpu.bridges == (PciAddress.parse(machine.address("gpu-port")),)
    assert gpu.reset_methods == ("bus",)
    assert (gpu.header_type, gpu.is_boot_display) == (0, False)
    assert gpu.link is not None
    assert gpu.link.speed_gt_s == 2.5
    assert Bar(index=0, size_bytes=16 << 20, is_prefetchable=True, is_64_bit=False) in gpu.bars
    assert functions[machine.address("boot-display")].is_boot_display
    amd = functions[machine.address("amd-gpu")]
    assert 8 << 30 in {bar.size_bytes for bar in amd.bars}
    assert functions[machine.address("switch-gpu-0")].numa_node == 1
    switch_gpu = functions[machine.address("switch-gpu-0")]
    assert switch_gpu.root == "pci0000:40"
    assert len(switch_gpu.bridges) == 3
    assert functions[machine.address("nvswitch")].identity.is_nvswitch
    assert (
        functions[machine.address("audio")].iommu_group
        == functions[machine.address("card")].iommu_group
    )


@pytest.mark.lab
def test_what_does_not_matter_is_not_in_the_inventory(machine: Machine) -> None:
    listed = {str(f.address) for f in collect(Host.at()).functions}
    assert not listed & {machine.address(role) for role in ("disk", "nic", "nvme-pf")}
    everything = {str(f.address) for f in collect(Host.at(), interest=lambda _: True).functions}
    assert everything == {path.name for path in DEVICES.iterdir()}


@pytest.mark.lab
def test_virtual_functions_are_told_from_their_parent(machine: Machine) -> None:
    parent = machine.address("nvme-pf")
    count = DEVICES / parent / "sriov_numvfs"
    count.write_text("2")
    try:
        found = collect(Host.at(), interest=lambda _: True)
        functions = found.by_address()
        owner = functions[PciAddress.parse(parent)]
        assert owner.sriov == PhysicalFunction(total_vfs=4, active_vfs=2)
        children = [f for f in functions.values() if isinstance(f.sriov, VirtualFunction)]
        assert [f.sriov for f in children] == 2 * [VirtualFunction(parent=owner.address)]
        group = found.by_group()[owner.iommu_group or -1]
        verdict = judge([group], functions, found.platform, named=frozenset({owner.address}))
        assert [b.address for b in verdict.blockers] == [owner.address]
    finally:
        count.write_text("0")


def links(parent: str) -> list[str]:
    return sorted(link.readlink().name for link in (DEVICES / parent).glob("virtfn*"))


def autoprobe(parent: str) -> str:
    return (DEVICES / parent / "sriov_drivers_autoprobe").read_text().strip()


def to_vfio(virtual: str) -> MoveGroup:
    """Return the step that a planner would make, were it not of a storage controller."""
    free, vfio = Binding(None, None), Binding("vfio-pci", "vfio-pci")
    address = PciAddress.parse(virtual)
    vendor, device = (int((DEVICES / virtual / n).read_text(), 16) for n in ("vendor", "device"))
    known = OriginalFunction(address=address, vendor=vendor, device=device, original=free)
    return MoveGroup(
        entry=LedgerEntry(unit=virtual, stage=Stage.BINDING, functions=(known,)),
        groups=(int((DEVICES / virtual / "iommu_group").readlink().name),),
        moves=(Move(address=address, before=free, target=vfio),),
        reason="test",
    )


@pytest.mark.lab
def test_virtual_functions_of_a_storage_controller_are_not_even_made(
    machine: Machine, agents: list[Agent], tmp_path: Path
) -> None:
    parent = machine.address("nvme-pf")
    asking = pool(at(parent)).replace("mode =", "virtual_functions = 2\nmode =")
    turn = agent_for(agents, tmp_path, asking).converge()
    assert turn.report.outcomes == ()
    assert "it is a storage controller" in turn.plan.refusals[0].reason
    assert links(parent) == []


@pytest.mark.lab
def test_virtual_functions_are_made_bound_given_back_and_removed(
    machine: Machine, agents: list[Agent], tmp_path: Path
) -> None:
    parent = machine.address("nvme-pf")
    agent = agent_for(agents, tmp_path, "")
    step = MakeVirtuals(parent=PciAddress.parse(parent), count=2, had_autoprobe=True, reason="test")
    assert agent.take(step).failures == ()
    first, second = links(parent)
    assert (driver(first), driver(second), autoprobe(parent)) == (None, None, "0")
    assert "meanwhile somebody else made 2" in str(agent.take(step).failures[0].detail)
    load = LoadModule(module="vfio-pci", units=(first, second), reason="test")
    assert agent.take(load, to_vfio(first), to_vfio(second)).failures == ()
    assert (driver(first), driver(second), driver(parent)) == ("vfio-pci", "vfio-pci", "nvme")
    with pod_vm.held((f"/dev/vfio/{(DEVICES / first / 'iommu_group').readlink().name}",)):
        assert agent.release().failures == ()
        assert (links(parent), driver(first)) == ([first, second], "vfio-pci")
    assert agent.release().failures == ()
    assert (links(parent), autoprobe(parent), driver(parent)) == ([], "1", "nvme")
    assert agent.journal.ledger == Ledger()


@pytest.mark.lab
def test_virtual_functions_that_cannot_be_made_leave_nothing_behind(
    machine: Machine, agents: list[Agent], tmp_path: Path
) -> None:
    parent = machine.address("nvme-pf")
    agent = agent_for(agents, tmp_path, "")
    step = MakeVirtuals(parent=PciAddress.parse(parent), count=5, had_autoprobe=True, reason="test")
    (failure,) = agent.take(step).failures
    assert "Numerical result out of range" in str(failure.detail)
    assert (links(parent), autoprobe(parent)) == ([], "1")
    Path("/sys/bus/pci/drivers/nvme/unbind").write_text(parent)
    try:
        (failure,) = agent.take(replace(step, count=2)).failures
    finally:
        Path("/sys/bus/pci/drivers/nvme/bind").write_text(parent)
    assert "it has no driver, or one that makes none" in str(failure.detail)
    assert (links(parent), autoprobe(parent)) == ([], "1")
    assert agent.journal.ledger == Ledger()


@pytest.mark.lab
def test_a_card_with_audio_moves_as_one_and_comes_back(
    machine: Machine, agents: list[Agent], tmp_path: Path
) -> None:
    card, audio = machine.address("card"), machine.address("audio")
    agent = agent_for(agents, tmp_path, pool(at(card)))
    turn = agent.converge()
    assert turn.report.failures == ()
    assert (driver(card), driver(audio)) == ("vfio-pci", "vfio-pci")
    assert (override(card), override(audio)) == ("vfio-pci", "vfio-pci")
    group = (DEVICES / card / "iommu_group").readlink().name
    assert agent.offered() == {card: [f"/dev/vfio/{group}"]}
    assert agent.converge().report.outcomes == ()
    assert agent.states() == {card: UnitState.AVAILABLE}
    assert agent.release().failures == ()
    assert (driver(card), driver(audio)) == ("bochs-drm", "snd_hda_intel")
    assert (override(card), override(audio)) == ("(null)", "(null)")
    assert agent.offered() == {}


@pytest.mark.lab
def test_a_group_with_a_stranger_is_refused_and_not_touched(
    machine: Machine, agents: list[Agent], tmp_path: Path
) -> None:
    gpu, mate = machine.address("bridged-gpu"), machine.address("bridged-mate")
    agent = agent_for(agents, tmp_path, pool(at(gpu)))
    turn = agent.converge()
    assert turn.report.outcomes == ()
    assert [f.subject for f in turn.plan.refusals] == [gpu]
    assert mate in turn.plan.refusals[0].reason
    assert driver(gpu) == "bochs-drm"


@pytest.mark.lab
def test_both_of_a_bridge_move_when_a_pool_names_both(
    machine: Machine, agents: list[Agent], tmp_path: Path
) -> None:
    gpu, mate = machine.address("bridged-gpu"), machine.address("bridged-mate")
    agent = agent_for(agents, tmp_path, pool(at(gpu), at(mate)))
    assert agent.converge().report.failures == ()
    assert (driver(gpu), driver(mate)) == ("vfio-pci", "vfio-pci")
    assert agent.states() == {gpu: UnitState.AVAILABLE}


@pytest.mark.lab
def test_the_boot_display_and_a_disk_are_refused(
    machine: Machine, agents: list[Agent], tmp_path: Path
) -> None:
    for role in ("boot-display", "disk"):
        held_by = driver(machine.address(role))
        agent = agent_for(agents, tmp_path, pool(at(machine.address(role))))
        turn = agent.converge()
        assert turn.report.outcomes == ()
        assert machine.address(role) in turn.plan.refusals[0].reason
        assert driver(machine.address(role)) == held_by


@pytest.mark.lab
def test_a_unit_that_a_vm_holds_is_neither_released_nor_harmed(
    machine: Machine, agents: list[Agent], tmp_path: Path
) -> None:
    gpu = machine.address("gpu")
    agent = agent_for(agents, tmp_path, pool(at(gpu)))
    agent.converge()
    with pod_vm.held(tuple(agent.offered()[gpu])) as holder:
        plan = node.make_release(agent.host, agent.settings, agent.journal.ledger, None)
        assert agent.release().outcomes == ()
        (finding,) = plan.refusals
        assert f"pid {holder.process.pid}" in str(finding)
        assert driver(gpu) == "vfio-pci"
        assert agent.journal.ledger.entry(gpu) is not None
    assert agent.release().failures == ()
    assert driver(gpu) == "bochs-drm"


@pytest.mark.lab
def test_a_gpu_whose_display_is_open_stays_with_the_host(
    machine: Machine, agents: list[Agent], tmp_path: Path
) -> None:
    gpu = machine.address("switch-gpu-0")
    (card,) = (DEVICES / gpu / "drm").glob("card*")
    agent = agent_for(agents, tmp_path, pool(at(gpu)))
    with subprocess.Popen(
        [
            sys.executable,
            "-S",
            "-c",
            "import sys; file = open(sys.argv[1]); print(1, flush=True); sys.stdin.read()",
            f"/dev/dri/{card.name}",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as user:
        assert user.stdout is not None
        user.stdout.readline()
        turn = agent.converge()
        assert f"pid {user.pid}" in str(turn.plan.refusals)
        assert driver(gpu) == "bochs-drm"
        assert override(gpu) == "(null)"
        user.kill()
    assert agent.converge().failed == {}
    assert driver(gpu) == "vfio-pci"


@pytest.mark.lab
def test_a_module_that_is_not_there_changes_nothing(
    machine: Machine, agents: list[Agent], tmp_path: Path
) -> None:
    gpu = machine.address("gpu")
    subprocess.run(["modprobe", "-r", "vfio-pci"], check=True)
    agent = agent_for(agents, tmp_path, pool(at(gpu)))
    hidden = Path("/etc/modprobe.d/hide-vfio.conf")
    hidden.write_text("install vfio-pci /bin/false\n")
    try:
        turn = agent.converge()
    finally:
        hidden.unlink()
    assert "modprobe -- vfio-pci" in str(turn.report.failures[0].detail)
    assert (driver(gpu), override(gpu)) == ("bochs-drm", "(null)")
    assert agent.offered() == {}
    assert agent.converge().report.failures == ()


@pytest.mark.lab
def test_a_device_that_comes_back_is_taken_again(
    machine: Machine, agents: list[Agent], tmp_path: Path
) -> None:
    nic = machine.plug("plug-nic")
    try:
        agent = agent_for(
            agents,
            tmp_path,
            pool(at(nic)),
        )
        agent.converge()
        assert driver(nic) == "vfio-pci"
        machine.unplug("plug-nic")
        turn = agent.converge()
        assert agent.offered() == {}
        assert any("gone from the bus" in finding.reason for finding in turn.plan.findings)
        assert machine.plug("plug-nic") == nic
        wait_for(lambda: driver(nic) == "e1000e", timeout_s=20)
        assert agent.converge().report.failures == ()
        assert driver(nic) == "vfio-pci"
        assert agent.release().failures == ()
    finally:
        machine.unplug("plug-nic")


@pytest.mark.lab(timeout_s=180)
def test_the_daemon_hears_the_kernel_and_repairs(
    machine: Machine, agents: list[Agent], tmp_path: Path
) -> None:
    gpu, vfio = machine.address("gpu"), Path("/sys/bus/pci/drivers/vfio-pci")
    agent = agent_for(agents, tmp_path, pool(at(gpu)))
    folder = Path(agent.settings.state_directory).parent
    write_files(folder, pool(at(gpu)))
    with running_daemon(folder) as daemon:
        wait_for(lambda: daemon.ask()["units"][0]["state"] == "available", timeout_s=60)
        before = daemon.ask()["pass_number"]
        (vfio / "unbind").write_text(gpu)
        assert wait_for(lambda: driver(gpu) == "vfio-pci", timeout_s=20) < 10
        wait_for(lambda: daemon.ask()["pass_number"] > before, timeout_s=20)
        wait_for(lambda: daemon.ask()["units"][0]["state"] == "available", timeout_s=20)
    assert driver(gpu) == "vfio-pci", "the end of the daemon unbinds nothing"
    assert list(agent.offered()) == [gpu]
    agent.journal = Journal(Path(agent.settings.ledger))


@pytest.mark.lab(timeout_s=180)
def test_the_daemon_takes_what_is_plugged_in(
    machine: Machine, agents: list[Agent], tmp_path: Path
) -> None:
    nic = machine.plug("plug-nic")
    machine.unplug("plug-nic")
    agent = agent_for(agents, tmp_path, pool(at(nic)))
    folder = Path(agent.settings.state_directory).parent
    try:
        write_files(folder, pool(at(nic)))
        with running_daemon(folder) as daemon:
            wait_for(lambda: daemon.ask()["ready"], timeout_s=60)
            assert daemon.ask()["units"] == []
            machine.plug("plug-nic")
            wait_for(lambda: driver(nic) == "vfio-pci", timeout_s=20)
            wait_for(lambda: daemon.ask()["units"][0]["state"] == "available", timeout_s=20)
        agent.journal = Journal(Path(agent.settings.ledger))
        assert not agent.release().failures
        assert driver(nic) == "e1000e"
    finally:
        machine.unplug("plug-nic")


@pytest.mark.lab("no-iommu")
def test_without_an_iommu_every_unit_is_refused_with_the_mend(
    machine: Machine, agents: list[Agent], tmp_path: Path
) -> None:
    gpu = machine.address("gpu")
    agent = agent_for(agents, tmp_path, pool(at(gpu)))
    turn = agent.converge()
    assert turn.report.outcomes == ()
    (refusal,) = turn.plan.refusals
    assert "no IOMMU is in use" in refusal.reason
    assert "intel_iommu=on" in refusal.remedy
    assert driver(gpu) == "bochs-drm"


@pytest.mark.lab
def test_a_read_only_sysfs_gets_one_clear_message(machine: Machine, tmp_path: Path) -> None:
    gpu = machine.address("gpu")
    file = tmp_path / "blueprint.toml"
    file.write_text(f'schema = 1\nversion = "lab"\n{pool(at(gpu))}')
    script = (
        "mount --make-rprivate / && mount -o remount,ro,bind /sys && "
        f"exec {sys.executable} -m kata_gpu apply --yes --blueprint {file}"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Read-only file system" in done.stderr
    assert done.stderr.count("\n") == 1
    assert driver(gpu) == "bochs-drm"


@pytest.mark.lab
def test_without_permission_nothing_changes(machine: Machine) -> None:
    gpu = machine.address("gpu")
    file = Path("/run/blueprint-for-nobody.toml")  # the test's own folder is root's alone
    file.write_text(f'schema = 1\nversion = "lab"\n{pool(at(gpu))}')
    as_nobody = (  # all imports first: nobody may not read a checkout in root's home
        "import logging, os, subprocess, tomli_w\n"
        "import kata_gpu.cli.change, kata_gpu.settings.blueprint\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "kata_gpu.cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", as_nobody, "apply", "--yes", "--blueprint", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("kata-gpu: cannot ")
    assert "Permission denied" in done.stderr
    assert (driver(gpu), override(gpu)) == ("bochs-drm", "(null)")
