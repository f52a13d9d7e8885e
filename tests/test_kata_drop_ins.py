"""The drop-in of each handler, runtime and trusted environment is the text that was reviewed.

``python -m tests.test_kata_drop_ins --write`` writes the texts anew; what it changed is then
reviewed as a diff.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.model.blueprint import KataHandler, Runtime
from kata_gpu.model.inventory import DROP_IN_NAME
from kata_gpu.model.kata import Configuration, Entry, EntryKind
from kata_gpu.model.plan import Severity
from kata_gpu.plan.kata import proposal
from kata_gpu.plan.kata.proposal import Proposal
from tests.test_kata_effective import BASE, base_text

_GOLDEN: Final = Path(__file__).parent / "kata_drop_ins"
_BASES: Final = (
    "qemu-nvidia-gpu",
    "qemu-nvidia-gpu-snp",
    "qemu-nvidia-gpu-tdx",
    "qemu-nvidia-gpu-runtime-rs",
    "qemu-nvidia-gpu-snp-runtime-rs",
    "qemu-nvidia-gpu-tdx-runtime-rs",
)
OURS: Final = f"/opt/kata/config.d/{DROP_IN_NAME}"
FUNCTIONS: Final = 4


def handler(base: str) -> KataHandler:
    runtime = Runtime.RUST if base.endswith("-rs") else Runtime.GO
    return KataHandler(name=f"kata-{base}", runtime=runtime, config=BASE)


def everything(base: str) -> KataHandler:
    """Ask for all that the blueprint can ask for of such a handler."""
    asked = replace(
        handler(base),
        pod_resource_api_sock="/run/k0s/pod-resources/kubelet.sock",
        pcie_root_ports=12,
        memory_mib=16384,
        enable_annotations=("default_vcpus", "kernel_params"),
        dial_timeout_s=90,
        create_container_timeout_s=600,
        cdh_api_timeout_s=120,
        launch_process_timeout_s=20,
    )
    params = () if asked.tee != "none" else ("pci=realloc", "nvrc.log=trace")
    return replace(asked, kernel_params=params)


HANDLERS: Final = {
    **{base: handler(base) for base in _BASES},
    **{f"{base}-everything": everything(base) for base in _BASES},
}


def propose(
    wanted: KataHandler,
    base: str | None = None,
    functions: int = FUNCTIONS,
    iommufd: bool = True,
    **drop_ins: str,
) -> Proposal:
    """Propose over a real base file; ``n90`` is a drop-in ``90-x.toml``."""
    text = base_text(wanted.name.removeprefix("kata-")) if base is None else base
    entries = tuple(
        Entry(name=f"{name.removeprefix('n')}-x.toml", kind=EntryKind.FILE, text=content)
        for name, content in drop_ins.items()
    )
    files = Configuration(path=BASE, text=text, entries=entries)
    return proposal.propose(wanted, files, functions, iommufd=iommufd)


def reasons(found: Proposal, severity: Severity) -> list[str]:
    return [f.reason for f in found.findings if f.severity is severity]


GO: Final = handler("qemu-nvidia-gpu")
RUST: Final = handler("qemu-nvidia-gpu-runtime-rs")


@pytest.mark.parametrize("name", sorted(HANDLERS))
def test_a_drop_in_reads_as_reviewed(name: str) -> None:
    found = propose(HANDLERS[name])
    assert found.findings == ()
    assert found.content == (_GOLDEN / f"{name}.toml").read_text(encoding="utf-8")


def test_every_golden_text_has_its_handler() -> None:
    assert {path.stem for path in _GOLDEN.glob("*.toml")} == set(HANDLERS)


# What is not written


@pytest.mark.parametrize("wanted", [GO, RUST], ids=lambda h: h.runtime.value)
def test_what_others_broke_keeps_ours_as_it_is(wanted: KataHandler) -> None:
    found = propose(wanted, n70="no TOML")
    assert (found.content, found.stays) == (None, True)
    (reason,) = reasons(found, Severity.REFUSED)
    assert "starts no pod with it: /opt/kata/config.d/70-x.toml: not TOML" in reason


def test_what_goes_with_others_and_not_with_ours_has_ours_removed() -> None:
    hot = '[hypervisor.qemu]\ncold_plug_vfio = "no-port"\nhot_plug_vfio = "root-port"\n'
    found = propose(GO, n90='[hypervisor.qemu]\nhot_plug_vfio = "root-port"\n', n50=hot)
    assert (found.content, found.stays) == (None, False)
    (reason,) = reasons(found, Severity.REFUSED)
    assert "90-x.toml: hypervisor.qemu.hot_plug_vfio" in reason


def test_another_hypervisor_than_the_blueprints_is_refused() -> None:
    found = propose(replace(GO, hypervisor="clh"))
    assert (found.content, found.stays) == (None, False)
    assert "hypervisors qemu, clh are all configured" in reasons(found, Severity.REFUSED)[0]


def test_a_table_that_runtime_rs_does_not_look_at_is_told() -> None:
    other = base_text("qemu-nvidia-gpu-runtime-rs").replace(
        'hypervisor_name = "qemu"', 'hypervisor_name = "dragonball"'
    )
    found = propose(RUST, other)
    assert "the runtime goes by hypervisor dragonball" in reasons(found, Severity.WARNING)[0]


def test_a_confidential_guest_gets_no_kernel_parameters() -> None:
    base = base_text("qemu-nvidia-gpu-snp")
    found = propose(replace(GO, name="kata-mine", kernel_params=("a=b",)), base)
    assert (found.content, found.stays) == (None, False)
    (reason,) = reasons(found, Severity.REFUSED)
    assert reason == (
        "its guests are confidential (snp), and kernel_params would change their measurement"
    )


def test_a_confidential_guest_needs_iommufd() -> None:
    found = propose(HANDLERS["qemu-nvidia-gpu-tdx"], iommufd=False)
    assert found.content is None
    assert "which needs iommufd" in reasons(found, Severity.REFUSED)[0]
    assert propose(GO, iommufd=False).content is not None


# What is told


def test_a_file_that_is_absent_to_us_is_told_and_does_not_keep_ours_away() -> None:
    files = Configuration(
        path=BASE,
        text=base_text("qemu-nvidia-gpu"),
        absent=frozenset({"/opt/kata/share/ovmf/OVMF.fd"}),
    )
    found = proposal.propose(GO, files, 1, iommufd=False)
    assert found.content is not None
    assert reasons(found, Severity.WARNING) == [
        f"{BASE}: hypervisor.qemu.firmware: there is no /opt/kata/share/ovmf/OVMF.fd, and no pod "
        f"starts without"
    ]


@pytest.mark.parametrize("wanted", [GO, RUST], ids=lambda h: h.runtime.value)
def test_a_later_drop_in_that_overrides_ours_is_named_with_its_value(wanted: KataHandler) -> None:
    found = propose(wanted, n90="[hypervisor.qemu]\npcie_root_port = 2\n")
    assert found.content is not None
    assert reasons(found, Severity.WARNING) == [
        "/opt/kata/config.d/90-x.toml sets hypervisor.qemu.pcie_root_port to 2 after our 8"
    ]


def test_a_later_drop_in_of_the_same_value_is_nobodys_business() -> None:
    assert propose(GO, n90="[hypervisor.qemu]\npcie_root_port = 8\n").findings == ()


def test_an_earlier_drop_in_is_what_lists_are_appended_to() -> None:
    asked = replace(GO, kernel_params=("c=d",), enable_annotations=("mine",))
    text = '[hypervisor.qemu]\nkernel_params = "a=b"\nenable_annotations = ["x"]\n'
    found = propose(asked, n30=text)
    assert 'kernel_params = "a=b c=d"' in (found.content or "")
    assert '"x",\n    "mine",\n' in (found.content or "")


def test_a_stray_file_is_named() -> None:
    files = Configuration(
        path=BASE,
        text=base_text("qemu-nvidia-gpu"),
        entries=(Entry(name=".x.swp", kind=EntryKind.FILE, text=""),),
    )
    found = proposal.propose(GO, files, 1, iommufd=False)
    assert reasons(found, Severity.WARNING) == [
        "/opt/kata/config.d/.x.swp: it is read as configuration like any other entry"
    ]


def test_a_vm_keeps_the_root_ports_that_it_has_without_us() -> None:
    assert "pcie_root_port = 8\n" in (propose(GO, functions=1).content or "")
    assert "pcie_root_port = 12\n" in (propose(GO, functions=12).content or "")
    assert "pcie_root_port = 16\n" in (propose(GO, functions=40).content or "")
    assert "pcie_root_port = 22\n" in (propose(RUST, functions=40).content or "")


def _write() -> None:
    for path in _GOLDEN.glob("*.toml"):
        path.unlink()
    for name, wanted in HANDLERS.items():
        (_GOLDEN / f"{name}.toml").write_text(propose(wanted).content or "", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m tests.test_kata_drop_ins --write")
    _write()
