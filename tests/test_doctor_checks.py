"""Each check of the doctor, on a fit node and on one that has what it looks for."""

from dataclasses import fields, is_dataclass, replace
from typing import Any, Final, cast, get_args, get_type_hints

import pytest

from kata_gpu.model.blueprint import Runtime
from kata_gpu.model.cdi import CdiBroken, CdiFile, CdiSpecs, CdiUnjudged, NodeKind
from kata_gpu.model.doctor import Check, Grade
from kata_gpu.model.inventory import DROP_IN_NAME
from kata_gpu.model.kata import Configuration, Entry, EntryKind, InstalledFile, Provenance
from kata_gpu.model.kubernetes import KUBELET_SOCKET
from kata_gpu.model.node_facts import (
    AgentPart,
    MemoryLock,
    ModuleRule,
    NodeFacts,
    PartState,
    Unknown,
)
from kata_gpu.model.operation import Operation
from kata_gpu.plan import doctor
from kata_gpu.settings.agent import Settings
from tests.fit_node import DISK, FIT, SYSFS, directory, node, spec, with_
from tests.values import PLATFORM

KUBELET: Final = KUBELET_SOCKET
LINK: Final = Settings().pod_resources_link
ERROR, WARNING, INFO, OK = Grade.ERROR, Grade.WARNING, Grade.INFO, Grade.OK


def kernel(**changes: Any) -> NodeFacts:
    return with_("kernel", **changes)


def platform(**changes: Any) -> NodeFacts:
    return kernel(platform=replace(PLATFORM, **changes))


def line(*words: str) -> NodeFacts:
    return kernel(command_line=words)


def rule(verb: str, module: str, rest: str = "") -> NodeFacts:
    found = ModuleRule(file="/etc/modprobe.d/x.conf", verb=verb, module=module, rest=rest)
    return with_("modules", rules=(found,))


def devices(**changes: Any) -> NodeFacts:
    return with_("devices", **changes)


def process(**changes: Any) -> NodeFacts:
    return with_("process", **changes)


def lock(limit_bytes: int, *, may_exceed: bool) -> NodeFacts:
    found = MemoryLock(program="crio", limit_bytes=limit_bytes, may_exceed=may_exceed)
    return process(memory_locks=(found,))


def kata(
    text: str | None, *, name: str = "90-x.toml", declared: Runtime | None = Runtime.GO
) -> NodeFacts:
    """Return the fit node with a Kata handler that has something beside its base file."""
    entry = Entry(
        name=name, kind=EntryKind.FILE, text=text, reason=None if text else "cannot read it"
    )
    found = InstalledFile(
        name="kata",
        config="/opt/kata/configuration.toml",
        provenance=Provenance.KATA_DEPLOY,
        version=None,
        configuration=Configuration(
            path="/opt/kata/configuration.toml", text="[hypervisor.qemu]\n", entries=(entry,)
        ),
        declared=declared,
    )
    return replace(FIT, kata=(found,))


def asked(*handlers: InstalledFile, **changes: Any) -> NodeFacts:
    """Return the fit node with something else about the link that Kata asks."""
    return replace(with_("asked", **changes), kata=handlers)


def asking(path: str | None, *, sources: str = "") -> InstalledFile:
    """Return a handler of the blueprint that asks there by our drop-in."""
    (found,) = cast("tuple[InstalledFile]", kata("[runtime]\n").kata)
    text = "[runtime]\n" + ("" if path is None else f'pod_resource_api_sock = "{path}"\n') + sources
    ours = Entry(name=DROP_IN_NAME, kind=EntryKind.FILE, text=text)
    return replace(found, configuration=replace(found.configuration, entries=(ours,)))


def state(**changes: Any) -> NodeFacts:
    return replace(FIT, state_directory=directory("/var/lib/kata-gpu", **changes))


def disk(**changes: Any) -> NodeFacts:
    return state(file_system=replace(DISK, **changes))


def specs(*files: CdiFile, **changes: Any) -> NodeFacts:
    return replace(FIT, cdi=CdiSpecs(files=files, **changes))


def unusable(content: CdiBroken | CdiUnjudged) -> NodeFacts:
    return specs(CdiFile(path="/a.json", directory="/", content=content))


def part(name: str, how: PartState) -> NodeFacts:
    return with_("agent", **{name: AgentPart(state=how, detail="as told")})


HUNG: Final = Operation(
    pid=4711,
    attribute="bus/pci/drivers/nvidia/unbind",
    value="0000:01:00.0",
    age_s=95.0,
    wait_channel="os_delay",
)

ROWS: Final = [
    ("iommu", platform(iommu=None), ERROR, "no IOMMU is in use"),
    ("interrupt-remapping", platform(interrupt_remapping=False), ERROR, "off: no interrupt"),
    ("interrupt-remapping", platform(interrupt_remapping=None), WARNING, "does not tell"),
    (
        "interrupt-remapping",
        platform(interrupt_remapping=None, machine="aarch64"),
        INFO,
        "interrupt controller on aarch64",
    ),
    ("unsafe-interrupts", kernel(unsafe_interrupts=True), WARNING, "allow_unsafe_interrupts is Y"),
    (
        "unsafe-interrupts",
        kernel(
            unsafe_interrupts=True, platform=replace(PLATFORM, interrupt_remapping=False)
        ),
        ERROR,
        "allow_unsafe_interrupts is Y",
    ),
    ("unsafe-interrupts", kernel(unsafe_interrupts=None), OK, "not loaded yet"),
    ("noiommu-mode", kernel(noiommu_mode=True), ERROR, "enable_unsafe_noiommu_mode is Y"),
    ("noiommu-mode", kernel(noiommu_mode=None), OK, "not loaded, or built without it"),
    ("stuck-operations", kernel(operations=(HUNG,)), ERROR, "unbind hangs for 95 s in os_delay"),
    ("kernel-taint", kernel(taint=1 << 7 | 1), ERROR, "tainted: D of 129"),
    ("kernel-taint", kernel(taint=1 << 9), WARNING, "tainted: W of 512"),
    ("kernel-taint", kernel(taint=1 << 4), WARNING, "M of 16"),
    ("kernel-taint", kernel(taint=1 << 12 | 1), INFO, "by nothing that matters"),
    ("kernel-modules", with_("modules", has_folder=False), WARNING, "does not exist"),
    (
        "kernel-modules",
        with_("modules", has_folder=False, loadable=frozenset(), loaded=frozenset()),
        ERROR,
        "/lib/modules/6.1.0-56-amd64 does not exist",
    ),
    (
        "vfio-modules",
        with_("modules", loadable=frozenset({"vfio"}), loaded=frozenset()),
        ERROR,
        "not found for 6.1.0-56-amd64: vfio_iommu_type1, vfio_pci",
    ),
    ("vfio-modules", with_("modules", loaded=frozenset()), OK, "can be loaded"),
    ("vfio-modules", with_("modules", loadable=frozenset()), OK, "loaded"),
    ("module-rules", rule("install", "vfio_pci", "/bin/false"), ERROR, "install vfio_pci /bin/f"),
    ("module-rules", rule("install", "vfio", "/usr/bin/true"), ERROR, "install vfio /usr/bin/tr"),
    ("module-rules", rule("install", "vfio", "exit 1"), ERROR, "install vfio exit 1"),
    ("module-rules", rule("install", "vfio_pci", "/sbin/mine"), WARNING, "/sbin/mine"),
    ("module-rules", rule("blacklist", "vfio_pci"), INFO, "loads by name"),
    (
        "module-rules",
        rule("options", "vfio_iommu_type1", "allow_unsafe_interrupts=1"),
        WARNING,
        "allow_unsafe_interrupts=1",
    ),
    ("module-rules", rule("options", "vfio_pci", "ids=10de:2330"), WARNING, "ids=10de:2330"),
    ("module-rules", rule("options", "vfio_pci", "disable_idle_d3=1"), INFO, "disable_idle_d3"),
    (
        "iommufd",
        devices(iommufd=node("/dev/iommu", None, exists=False)),
        INFO,
        "this kernel has none",
    ),
    (
        "iommufd",
        devices(iommufd=node("/dev/iommu", "10:126", node=None, exists=False)),
        ERROR,
        "/dev/iommu does not exist",
    ),
    ("iommufd", devices(iommufd=node("/dev/iommu", None)), ERROR, "no character device"),
    (
        "iommufd",
        devices(iommufd=node("/dev/iommu", "10:126", node="10:9")),
        ERROR,
        "/dev/iommu is 10:9, and the device is 10:126",
    ),
    ("vfio-nodes", devices(groups=()), OK, "not loaded yet"),
    (
        "vfio-nodes",
        devices(groups=(node("/dev/vfio/18", "511:0", exists=False),)),
        ERROR,
        "/dev/vfio/18 does not exist",
    ),
    (
        "vfio-cdevs",
        devices(cdevs=(node("/dev/vfio/devices/vfio0", "510:0", node="510:1"),)),
        ERROR,
        "vfio0 is 510:1, and the device is 510:0",
    ),
    ("vfio-cdevs", devices(cdevs=()), INFO, "no CONFIG_VFIO_DEVICE_CDEV"),
    ("vfio-cdevs", devices(cdevs=(), bound=0), OK, "no function on VFIO"),
    ("root-user", process(user=1000), WARNING, "uid 1000"),
    ("sysfs", replace(FIT, sysfs=replace(SYSFS, is_read_only=True)), ERROR, "read-only"),
    ("sysfs", replace(FIT, sysfs=replace(SYSFS, kind="tmpfs")), ERROR, "is tmpfs"),
    ("process-visibility", process(capabilities=0), ERROR, "no CAP_SYS_PTRACE (CapEff 0)"),
    ("process-visibility", process(capabilities=0, user=1000), WARNING, "no CAP_SYS_PTRACE"),
    ("process-visibility", process(sees_host=False), ERROR, "a PID namespace of its own"),
    ("state-directory", state(owner=1000), ERROR, "belongs to uid 1000"),
    ("state-directory", state(mode=0o1777), ERROR, "has mode 1777"),
    ("state-directory", state(mode=0o775), ERROR, "has mode 0775"),
    ("state-directory", state(existing="/tmp", mode=0o1777), OK, "to be made in /tmp"),  # noqa: S108
    ("state-directory", state(existing="/tmp", mode=0o777), ERROR, "/tmp belongs"),  # noqa: S108
    ("state-directory", state(is_directory=False), ERROR, "is no folder"),
    ("state-directory", disk(is_read_only=True), ERROR, "on a read-only ext4"),
    (
        "cdi-directory",
        replace(FIT, cdi_directory=directory("/var/run/cdi", mode=0o757)),
        ERROR,
        "/var/run/cdi belongs to uid 0 and has mode 0757",
    ),
    ("free-space", disk(free_bytes=5000), ERROR, "0 MiB free"),
    ("free-space", disk(free_bytes=2 << 20), WARNING, "2 MiB free"),
    ("free-space", disk(free_files=0), ERROR, "no file can be made on the ext4"),
    ("free-space", disk(free_files=None), OK, "8192 MiB free"),
    ("memory-lock", lock(8 << 20, may_exceed=False), WARNING, "crio: 8192 KiB"),
    ("memory-lock", lock(8 << 20, may_exceed=True), INFO, "crio: 8192 KiB; VMs that run as root"),
    ("hugepages", kernel(hugepages=()), INFO, "none reserved"),
    (
        "host-drivers",
        with_("modules", loaded=frozenset({"nouveau", "nova_core"})),
        WARNING,
        "nouveau, nova_core are loaded",
    ),
    ("host-drivers", with_("modules", loaded=frozenset()), OK, "none of nouveau"),
    ("other-managers", replace(FIT, driverctl=("0000:01:00.0",)), WARNING, "0000:01:00.0"),
    ("other-managers", process(commands=frozenset({"vfio-manage"})), WARNING, "VFIO manager runs"),
    ("other-managers", process(commands=frozenset({"libvirtd"})), INFO, "libvirtd runs"),
    ("other-managers", process(sees_host=False), WARNING, "cannot be seen from here"),
    ("cdi-files", unusable(CdiBroken(reason="x")), ERROR, "/a.json: x"),
    ("cdi-files", unusable(CdiUnjudged(reason="too long")), WARNING, "too long"),
    ("cdi-versions", specs(spec("/a.yaml", cdiVersion="0.7.0")), ERROR, "cdiVersion 0.7.0"),
    ("cdi-versions", specs(spec("/a.yaml", cdiVersion="1.1.0")), ERROR, "cdiVersion 1.1.0"),
    ("cdi-versions", specs(spec("/a.yaml", cdiVersion="0.6.0")), OK, "none after 0.6.0"),
    (
        "cdi-duplicates",
        specs(spec("/etc/cdi/a.json", "x"), spec("/etc/cdi/b.json", "x")),
        ERROR,
        "/etc/cdi/a.json: devices[0]: nvidia.com/pgpu=x is in /etc/cdi/b.json too",
    ),
    (
        "cdi-duplicates",
        specs(spec("/etc/cdi/a.json", "x"), spec("/var/run/cdi/a.json", "x")),
        WARNING,
        "nvidia.com/pgpu=x is in /var/run/cdi/a.json too",
    ),
    (
        "cdi-duplicates",
        specs(spec("/a/a.json", "x"), spec("/a/b.json", "x", kind="nvidia.com/gpu")),
        OK,
        "2 devices, each in one spec",
    ),
    (
        "cdi-device-nodes",
        specs(spec("/a.json", *"abcdefg"), nodes={"/dev/vfio/7": NodeKind.MISSING}),
        WARNING,
        "/a.json: devices[0].containerEdits.deviceNodes[0].path: nothing is at /dev/vfio/7",
    ),
    (
        "cdi-device-nodes",
        specs(spec("/a.json", *"abcdefg"), nodes={"/dev/vfio/7": NodeKind.MISSING}),
        INFO,
        "2 more of the kind; kata-gpu cdi validate tells them all",
    ),
    ("cdi-device-nodes", specs(spec("/a.json", node="/dev/vfio/vfio")), WARNING, "control node"),
    ("cdi-files", specs(spec("/a.json", kind="x")), ERROR, "/a.json: kind: 'x' is not vendor/"),
    ("cdi-files", specs(problems=("cannot list /etc/cdi",)), WARNING, "cannot list /etc/cdi"),
    ("cdi-leftovers", specs(leftovers=("/etc/cdi/x.tmp",)), INFO, "/etc/cdi/x.tmp"),
    *(
        ("kata-pod-resources", facts, grade, words)
        for facts, grade, words in (
            (asked(is_there=False, target=None), INFO, "is not there, and no handler has it yet"),
            (asked(asking(LINK), is_there=False, target=None), ERROR, f"nothing is at {LINK}"),
            (asked(asking(LINK), target=None), ERROR, "is no symbolic link"),
            (asked(is_target_there=False, is_served=False), ERROR, "where nothing is"),
            (asked(asking(LINK), is_served=False), ERROR, "nobody serves any more; handlers that "
             "ask there: kata"),
            (asked(asking(LINK), is_wanted=False, is_served=False), ERROR, "nobody serves any"),
            (asked(target="/srv/x.sock", leads_to_agent=False), WARNING, "neither kubelet's"),
            (asked(target=KUBELET), WARNING, "to kubelet, though the agent runs"),
            (asked(target=KUBELET, is_served=False), WARNING, "kubelet does not listen there"),
            (
                replace(asked(target=KUBELET), agent=part("socket", PartState.ABSENT).agent),
                INFO,
                "to kubelet, as no agent answers Kata",
            ),
            (asked(asking(LINK)), OK, "the agent answers"),
            (asked(is_wanted=False, target=None, is_there=False), OK, "Kata asks kubelet itself"),
            (asked(asking(KUBELET)), ERROR, f"handler kata asks {KUBELET} (set in /opt/kata/"
             f"config.d/{DROP_IN_NAME}) and not {LINK}"),
            (asked(asking(None)), ERROR, "handler kata asks nobody"),
            (
                asked(asking(KUBELET, sources='pod_resource_device_sources = ["dra"]\n')),
                OK,
                "the agent answers",
            ),
        )
    ),
    ("agent-settings", part("settings", PartState.BROKEN), ERROR, "as told"),
    ("agent-blueprint", part("blueprint", PartState.BROKEN), ERROR, "as told"),
    ("agent-blueprint", part("blueprint", PartState.ABSENT), INFO, "as told"),
    ("agent-ledger", part("ledger", PartState.BROKEN), ERROR, "as told"),
    ("agent-ledger", part("ledger", PartState.UNKNOWN), WARNING, "unknown: as told"),
    ("agent-socket", part("socket", PartState.BROKEN), WARNING, "as told"),
    ("agent-socket", part("socket", PartState.ABSENT), INFO, "as told"),
    (
        "confidential-computing",
        kernel(tee_parameters=(("kvm_amd.sev_snp", "Y"),)),
        INFO,
        "kvm_amd.sev_snp Y; the host's word",
    ),
    *(
        ("kernel-command-line", facts, grade, word)
        for facts, grade, word in (
            (line("intel_iommu=sm_on,off"), INFO, "intel_iommu=off: an IOMMU is in use"),
            (line("intremap=off"), WARNING, "intremap=off"),
            (line("nointremap"), WARNING, "nointremap"),
            (line("intremap=nosid"), WARNING, "intremap=nosid"),
            (line("intremap=no_x2apic_optout"), INFO, "no_x2apic_optout"),
            (line("iommu=pt"), INFO, "iommu=pt"),
            (line("iommu.passthrough=1"), INFO, "iommu.passthrough=1"),
            (line("iommu.passthrough=0"), OK, "none of the"),
            (line("pcie_acs_override=downstream,multifunction"), WARNING, "pcie_acs_override"),
            (line("pci=noaer,disable_acs_redir=0:1.0"), WARNING, "disable_acs_redir"),
            (line("pci=config_acs=10x@pci:0:0"), WARNING, "config_acs"),
            (line("pci=noaer"), OK, "none of the"),
            (line("vfio-iommu-type1.allow_unsafe_interrupts=1"), WARNING, "unsafe_interrupts"),
            (line("vfio.enable_unsafe_noiommu_mode=Y"), WARNING, "noiommu"),
            (line("module_blacklist=nouveau,vfio-pci"), ERROR, "module_blacklist=vfio-pci"),
            (line("module_blacklist=nouveau"), OK, "none of the"),
            (line("modprobe.blacklist=vfio_pci"), INFO, "modprobe.blacklist"),
            (line("rd.driver.blacklist=vfio"), INFO, "rd.driver.blacklist"),
            (line("vfio-pci.ids=10de:2330"), WARNING, "vfio-pci.ids=10de:2330"),
            (line("nomodule"), WARNING, "nomodule"),
        )
    ),
    ("kata-configuration", kata("no TOML"), ERROR, "/opt/kata/config.d/90-x.toml: not TOML"),
    ("kata-configuration", kata("no TOML", declared=None), WARNING, "90-x.toml: not TOML"),
    ("kata-configuration", kata("[agent.kata]\nno = 1\n"), ERROR, "90-x.toml: agent.kata.no"),
    ("kata-configuration", kata(None), ERROR, "90-x.toml: cannot read it"),
    ("kata-drop-ins", kata("[runtime]\nno = 1\n"), WARNING, "90-x.toml: runtime.no"),
    ("kata-drop-ins", kata("", name=".x.swp"), WARNING, "config.d/.x.swp: it is read"),
]  # fmt: skip
NOTHING_TO_MEND: Final = {"hugepages", "confidential-computing", "cdi-leftovers"}


def answers(facts: NodeFacts, check: str) -> list[Check]:
    return list(doctor.judge(facts, {check}))


@pytest.mark.parametrize("check", doctor.CHECKS)
def test_a_fit_node_has_nothing_to_mend(check: str) -> None:
    found = answers(FIT, check)
    assert found
    expected = {INFO} if check in {"hugepages", "confidential-computing"} else {OK}
    assert {answer.grade for answer in found} == expected
    assert all(a.id == check and a.why is None and a.remedy is None for a in found)


@pytest.mark.parametrize(
    ("check", "facts", "grade", "words"),
    ROWS,
    ids=[f"{row[0]}-{row[2]}-{number}" for number, row in enumerate(ROWS)],
)
def test_what_a_check_looks_for_is_found(
    check: str, facts: NodeFacts, grade: Grade, words: str
) -> None:
    found = [a for a in answers(facts, check) if words in a.found]
    assert [a.grade for a in found] == [grade], answers(facts, check)


@pytest.mark.parametrize(
    ("check", "facts"), [row[:2] for row in ROWS], ids=[str(n) for n in range(len(ROWS))]
)
def test_whatever_is_not_right_says_why_and_what_to_do(check: str, facts: NodeFacts) -> None:
    for answer in answers(facts, check):
        if answer.grade in {ERROR, WARNING}:
            assert answer.why
            assert answer.remedy
        assert answer.grade is not OK or answer.why is None


def test_every_check_is_tried_both_ways() -> None:
    bad = {row[0] for row in ROWS if row[2] in {ERROR, WARNING}}
    assert bad == doctor.CHECKS.keys() - NOTHING_TO_MEND


@pytest.mark.parametrize("word", ["intel_iommu=off", "amd_iommu=off", "iommu=off"])
def test_who_switched_the_iommu_off_is_an_error_when_it_is_off(word: str) -> None:
    off = kernel(command_line=(word,), platform=replace(PLATFORM, iommu=None))
    (answer,) = answers(off, "kernel-command-line")
    assert (answer.grade, answer.found) == (ERROR, word)


def test_several_things_to_mend_are_several_answers() -> None:
    found = answers(line("nomodule", "intremap=off,nosid"), "kernel-command-line")
    assert [a.found for a in found] == ["nomodule", "intremap=off", "intremap=nosid"]


def unknown_facts() -> list[tuple[str, NodeFacts]]:
    """Return the fit node with each fact in turn unknown, wherever the model allows it."""
    gone: Any = Unknown(reason="no luck")
    found = []
    for field in fields(FIT):
        value = getattr(FIT, field.name)
        if Unknown in get_args(get_type_hints(NodeFacts)[field.name]):
            found.append((field.name, replace(FIT, **{field.name: gone})))
        if is_dataclass(value):
            for name, hint in get_type_hints(type(value)).items():
                if Unknown in get_args(hint):
                    found.append((f"{field.name}.{name}", with_(field.name, **{name: gone})))
    return found


UNKNOWN: Final = unknown_facts()


@pytest.mark.parametrize("facts", [f for _, f in UNKNOWN], ids=[name for name, _ in UNKNOWN])
def test_what_cannot_be_read_is_a_warning_and_never_sound(facts: NodeFacts) -> None:
    fit = {(a.id, a.found) for a in doctor.judge(FIT)}
    changed = [a for a in doctor.judge(facts) if (a.id, a.found) not in fit]
    assert changed
    assert any(a.grade is WARNING and a.found.startswith("unknown: ") for a in changed)
    assert all(a.grade is WARNING for a in changed)


def test_facts_at_every_depth_can_be_unknown() -> None:
    names = {name for name, _ in UNKNOWN}
    assert names >= {"sysfs", "kernel.taint", "modules.rules", "state_directory.file_system"}


def test_the_order_is_that_of_the_checks_and_others_are_left_out() -> None:
    assert [a.id for a in doctor.judge(FIT, ["sysfs", "iommu"])] == ["iommu", "sysfs"]


def test_many_faults_of_one_handler_are_counted() -> None:
    text = "[hypervisor.qemu]\n" + "".join(f"no{n} = 1\n" for n in range(9))
    found = answers(kata(text), "kata-configuration")
    assert [a.grade for a in found] == [*[ERROR] * 5, INFO]
    assert found[-1].found == "4 more in the files of handler kata"
