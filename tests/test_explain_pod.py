"""``kata-gpu explain pod``: what a node knows of a pod, and the likely cause of its failure."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_gpu.agent import node
from kata_gpu.cli import explain_pod
from kata_gpu.discover import pods
from kata_gpu.errors import HostError
from kata_gpu.host import Host
from kata_gpu.model.blueprint import KataHandler, Runtime
from kata_gpu.model.explanation import PodExplanation, Said, Unsaid, lines
from kata_gpu.model.node_facts import Unknown
from kata_gpu.model.unit import UnitState
from kata_gpu.plan import pods as plan
from kata_gpu.plan.pods import failures
from tests.kernel import nodes
from tests.kernel.fake import FakeKernel
from tests.passthrough import EVERY_GPU, SETTINGS, journal_of
from tests.test_cli import Done, complaint, run, written

UID: Final = "0f6a2a3e-7b1c-4d2e-9f00-aabbccddeeff"
OLDER: Final = "1f6a2a3e-7b1c-4d2e-9f00-aabbccddeeff"
SANDBOX: Final = "ab" * 32
KIND: Final = "example.com/pgpu"
CHECKPOINT: Final = f"{pods.KUBELET}/{pods.CHECKPOINT}".removeprefix("/")
NO_AGENT: Final = Unsaid(reason="no agent runs")
GO: Final = KataHandler(name="kata-qemu-nvidia-gpu", runtime=Runtime.GO, config="/x.toml")
RUST: Final = KataHandler(name="kata-rs", runtime=Runtime.RUST, config="/y.toml")


class Journal:
    """The node's journal, as journalctl shows it."""

    def __init__(self, *texts: str) -> None:
        self.asked: list[Sequence[str]] = []
        self._texts = texts

    def __call__(self, argv: Sequence[str], *, timeout_s: float) -> str:
        assert argv[0] == "journalctl"
        assert timeout_s <= 10
        self.asked.append(argv)
        return "".join(
            json.dumps(
                {
                    "__REALTIME_TIMESTAMP": str(1_790_000_000_000_000 + number),
                    "SYSLOG_IDENTIFIER": "containerd",
                    "MESSAGE": text,
                }
            )
            + "\n"
            for number, text in enumerate(self._texts)
        )


def no_journal(argv: Sequence[str], *, timeout_s: float) -> str:
    raise HostError(f"cannot run {argv[0]}: No such file or directory ({timeout_s:g} s)")


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    """A node whose GPU is published, and a pod that kubelet gave it to."""
    found = nodes.single_gpu(tmp_path)
    written(found)
    node.converge(found.host, SETTINGS, EVERY_GPU, journal_of(found.host))
    (tmp_path / "dev/vfio/1").unlink(missing_ok=True)
    (tmp_path / "dev/vfio").mkdir(parents=True, exist_ok=True)
    (tmp_path / "dev/vfio/1").symlink_to("/dev/null")
    pod(found, UID, nodes.GPU)
    return found


def pod(kernel: FakeKernel, uid: str, *ids: str, resource: str = KIND) -> None:
    (kernel.tree.root / f"var/log/pods/ml_train-0_{uid}").mkdir(parents=True, exist_ok=True)
    entry = {
        "PodUID": uid,
        "ContainerName": "cuda",
        "ResourceName": resource,
        "DeviceIDs": {"-1": list(ids)},
        "AllocResp": "",
    }
    path = kernel.tree.root / CHECKPOINT
    found = json.loads(path.read_text()) if path.exists() else {"Data": {"PodDeviceEntries": []}}
    found["Data"]["PodDeviceEntries"].append(entry)
    kernel.tree.text(CHECKPOINT, json.dumps(found))


def explained(
    kernel: FakeKernel,
    journal: Any = no_journal,
    handlers: tuple[KataHandler, ...] = (),
    said: Said | Unsaid = NO_AGENT,
) -> PodExplanation:
    host = replace(kernel.host, run=journal)
    facts = explain_pod.look(host, SETTINGS, "ml", "train-0", handlers, said)
    return plan.explain(facts)


def whole(found: PodExplanation) -> str:
    return "\n".join(lines(found))


# What is known


def test_a_pod_that_can_have_its_devices_is_in_order(kernel: FakeKernel) -> None:
    found = explained(kernel)
    assert found.is_in_order
    assert (found.uid, found.handler, found.causes) == (UID, None, ())
    assert found.headline == "pod ml/train-0 has 1 device, and nothing was found in the way"
    text = whole(found)
    assert f"container cuda has {KIND} {nodes.GPU}" in text
    for runtime in ("Kata's Go runtime", "runtime-rs"):
        assert f"{runtime} resolves {KIND}={nodes.GPU} by /var/run/cdi/" in text
    assert "it is not known: cannot run journalctl" in text


def test_a_node_without_kubelet_or_journal_says_so(tmp_path: Path) -> None:
    found = explained(nodes.single_gpu(tmp_path))
    assert not found.is_in_order
    assert found.headline == "this node knows no pod ml/train-0"
    assert "what kubelet gave it is not known: cannot read" in whole(found)
    assert found.actions == ("look for its node: kubectl get pod -o wide",)


def test_the_newest_pod_of_a_name_counts(kernel: FakeKernel) -> None:
    pod(kernel, OLDER, "0000:99:00.0")
    folder = kernel.tree.root / "var/log/pods"
    os.utime(folder / f"ml_train-0_{OLDER}", (1, 1))
    found = explained(kernel)
    assert (found.uid, found.is_in_order) == (UID, True)
    assert "2 pods of that name were here" in whole(found)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"Data": 7}', '{"Data": {"PodDeviceEntries": [1]}}', "[" * 100_000, "\0"],
    ids=range(7),
)
def test_a_checkpoint_of_another_form_is_unknown(text: str, kernel: FakeKernel) -> None:
    kernel.tree.text(CHECKPOINT, text)
    assert isinstance(pods.allocations(kernel.host), Unknown)
    assert "what kubelet gave it is not known" in whole(explained(kernel))


def test_kubelet_may_keep_its_files_elsewhere(kernel: FakeKernel) -> None:
    (kernel.tree.root / "var/lib/k0s").mkdir(parents=True)
    (kernel.tree.root / "var/lib/kubelet").rename(kernel.tree.root / "var/lib/k0s/kubelet")
    moved = replace(GO, pod_resource_api_sock="/var/lib/k0s/kubelet/pod-resources/kubelet.sock")
    assert "what kubelet gave it is not known" in whole(explained(kernel, handlers=(GO,)))
    assert f"container cuda has {KIND}" in whole(explained(kernel, handlers=(moved,)))


def test_ids_of_an_old_kubelet_are_a_list(kernel: FakeKernel) -> None:
    entry = {"PodUID": UID, "ContainerName": "c", "ResourceName": KIND, "DeviceIDs": ["a", "b"]}
    text = json.dumps({"Data": {"PodDeviceEntries": [entry], "RegisteredDevices": {KIND: ["a"]}}})
    kernel.tree.text(CHECKPOINT, text)
    found = pods.allocations(kernel.host)
    assert not isinstance(found, Unknown)
    assert [device.id for device in found.devices[UID]] == ["a", "b"]
    assert found.registered == {KIND: ("a",)}


def claim_state(kernel: FakeKernel, *names: str, key: str = "Entries", uid: str = UID) -> None:
    """Let kubelet have prepared a claim of the pod, whose devices have these CDI names."""
    device = {
        "PoolName": "n",
        "DeviceName": "d",
        "RequestNames": ["gpu"],
        "CDIDeviceIDs": list(names),
    }
    state = {
        "ClaimUID": "u",
        "ClaimName": "c",
        "Namespace": "ml",
        "PodUIDs": {uid: {}},
        "DriverState": {"gpu.kata-passthrough.io": {"Devices": [device, device]}},
    }
    text = json.dumps({"kind": "DRACheckpoint", key: [state]})
    path = f"{pods.KUBELET}/{pods.CLAIMS}".removeprefix("/")
    kernel.tree.text(path, json.dumps({"Data": text, "Checksum": 1}))


@pytest.mark.parametrize("key", ["Entries", "ClaimInfoStateList"])
def test_what_a_claim_has_is_explained_like_what_a_plugin_gave(
    key: str, kernel: FakeKernel
) -> None:
    (kernel.tree.root / CHECKPOINT).unlink()
    claim_state(kernel, f"{KIND}={nodes.GPU}", key=key)
    found = explained(kernel)
    assert found.is_in_order
    assert found.headline == "pod ml/train-0 has 1 device, and nothing was found in the way"
    assert f"claim c has {KIND} {nodes.GPU}" in whole(found)
    claim_state(kernel, f"{KIND}=0000:99:00.0", key=key)
    found = explained(kernel)
    assert found.causes[0].what.startswith(f"claim c has {KIND}=0000:99:00.0, which is in no CDI")


def test_the_claims_of_other_pods_are_not_this_ones(kernel: FakeKernel) -> None:
    claim_state(kernel, f"{KIND}=0000:99:00.0", uid=OLDER)
    assert "claim c" not in whole(explained(kernel))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"Data": 7}',
        '{"Data": "[]"}',
        '{"Data": "{\\"Entries\\": [7]}"}',
        json.dumps({"Data": json.dumps({"Entries": [{"PodUIDs": None, "DriverState": None}]})}),
        "[" * 100_000,
    ],
)
def test_claims_of_another_form_are_unknown(text: str, kernel: FakeKernel) -> None:
    path = f"{pods.KUBELET}/{pods.CLAIMS}".removeprefix("/")
    kernel.tree.text(path, text)
    assert "what its claims have is not known: cannot read" in whole(explained(kernel))


def test_a_device_that_its_plugin_offers_no_more_is_told(kernel: FakeKernel) -> None:
    path = kernel.tree.root / CHECKPOINT
    found = json.loads(path.read_text())
    found["Data"]["RegisteredDevices"] = {KIND: ["0000:99:00.0"]}
    path.write_text(json.dumps(found))
    assert f"has {KIND} {nodes.GPU}, which no plugin offers now" in whole(explained(kernel))


# Causes


def test_a_device_in_no_cdi_file_is_the_cause(kernel: FakeKernel) -> None:
    pod(kernel, UID, "5", resource="example.com/nic")
    found = explained(kernel)
    assert not found.is_in_order
    assert "container cuda has example.com/nic=5, which is in no CDI file" in found.headline
    assert "have the device plugin of example.com/nic write a CDI file" in found.actions[0]


def test_a_device_of_ours_that_is_offered_no_more_leads_to_its_unit(kernel: FakeKernel) -> None:
    pod(kernel, UID, "0000:99:00.0")
    assert "kata-gpu explain 0000:99:00.0" in explained(kernel).actions[0]


def test_a_foreign_file_that_stops_every_pod_is_the_first_cause(kernel: FakeKernel) -> None:
    kernel.tree.text("etc/cdi/nvidia.json", '{"cdiVersion": "0.7.0"}')
    found = explained(kernel, handlers=(GO,))
    assert found.causes[0].what.startswith("/etc/cdi/nvidia.json: cdiVersion: cdiVersion 0.7.0")
    assert "Kata's Go runtime resolves no device at all" in found.causes[0].what


def test_a_node_that_is_gone_is_the_cause(kernel: FakeKernel) -> None:
    (kernel.tree.root / "dev/vfio/1").unlink()
    found = explained(kernel)
    assert "the node /dev/vfio/1, and no device is there" in found.headline
    assert len(found.causes) == 1


def test_what_the_agent_says_of_the_unit_counts(kernel: FakeKernel) -> None:
    said = Said(
        agent="0.3.0",
        blueprint="b",
        read_at=datetime(2026, 11, 24, tzinfo=UTC),
        states={nodes.GPU: (UnitState.QUARANTINED, "its BARs changed")},
        findings=(),
        outcomes=(),
        troubles=(),
    )
    found = explained(kernel, said=said)
    assert f"unit {nodes.GPU} is quarantined: its BARs changed" in found.headline
    assert "the word of agent 0.3.0" in found.source


def test_only_faults_of_the_devices_that_it_has_are_causes(kernel: FakeKernel) -> None:
    bad = {"path": "/dev/vfio/vfio"}
    good = {"path": "/dev/vfio/1"}
    spec = {
        "cdiVersion": "0.5.0",
        "kind": "a.b/c",
        "devices": [
            {"name": "x", "containerEdits": {"deviceNodes": [good]}},
            {"name": "y", "containerEdits": {"deviceNodes": [bad, good]}},
        ],
    }
    (kernel.tree.root / "dev/vfio/vfio").unlink(missing_ok=True)
    (kernel.tree.root / "dev/vfio/vfio").symlink_to("/dev/null")
    kernel.tree.text("etc/cdi/a.json", json.dumps(spec))
    pod(kernel, UID, "x", resource="a.b/c")
    assert explained(kernel, handlers=(RUST,)).is_in_order
    pod(kernel, UID, "y", resource="a.b/c")
    assert explained(kernel, handlers=(GO,)).is_in_order
    found = explained(kernel, handlers=(RUST,))
    assert "devices[1].containerEdits.deviceNodes[0]: runtime-rs takes" in found.headline


def test_a_handler_for_confidential_vms_with_a_group_is_a_cause(kernel: FakeKernel) -> None:
    found = explained(kernel, handlers=(replace(GO, name="kata-qemu-nvidia-gpu-snp"),))
    assert "is for confidential VMs, and the pod has the legacy group /dev/vfio/1" in found.headline


# The journal


def test_lines_of_the_pod_and_of_its_sandbox_are_looked_at_and_no_others(
    kernel: FakeKernel,
) -> None:
    journal = Journal(
        f"RunPodSandbox for &PodSandboxMetadata{{Name:train-0,Uid:{UID},Namespace:ml}} {SANDBOX}",
        f"sandbox={SANDBOX} shim loaded io.containerd.kata-qemu-nvidia-gpu.v2",
        f"sandbox={SANDBOX} Unknown VFIO mode",
        f"sandbox={'cd' * 32} ConfidentialGuest needs IOMMUFD",
        "pod train-01 of ml: unresolvable CDI devices",
    )
    found = explained(kernel, journal, (GO, RUST))
    assert found.handler == GO.name
    assert [cause.source for cause in found.causes] == ["RT/pkg/katautils/config.go"]
    assert "containerd said so at 2026-09-21" in found.headline
    (argv,) = journal.asked
    assert f"--root={kernel.host.root}" in argv
    assert argv[argv.index("-n") + 1] == "5000"


def test_a_journal_full_of_rubbish_is_no_error(kernel: FakeKernel) -> None:
    def rubbish(argv: Sequence[str], *, timeout_s: float) -> str:
        assert argv
        assert timeout_s
        texts = ["{", "7", "[]", '{"MESSAGE": null}', "[" * 100_000, f'{{"MESSAGE": "{UID}"}}']
        bytes_ = {"__REALTIME_TIMESTAMP": "1", "MESSAGE": [*UID.encode(), 255, 27]}
        return "\n".join([*texts, json.dumps(bytes_), '{"__REALTIME_TIMESTAMP": "9' + "9" * 40])

    found = explained(kernel, rubbish)
    assert found.is_in_order
    assert "1 lines within a day" in whole(found)


SAMPLES: Final = {
    "guest-cdi": 'failed: unresolvable CDI devices ["nvidia.com/gpu=0"]',
    "unresolvable": "failed to inject: unresolvable CDI devices nvidia.com/pgpu=vfio1",
    "conflict": "conflicting device nvidia.com/pgpu=0 (specs /a.json, /b.json)",
    "cdi-version": 'CDI registry refresh failed: /etc/cdi/n.yaml: invalid version "0.7.0"',
    "cdi-no-devices": "create a new cdi spec failed: invalid spec, no devices",
    "cdi-empty-edits": 'invalid device "0", empty device edits',
    "cdi-file": "CDI registry refresh failed: yaml: line 3: mapping values",
    "no-device-node": "/dev/vfio/7 is not a device node",
    "confidential-group": "ConfidentialGuest needs IOMMUFD - cannot use /dev/vfio/7",
    "control-node": "Invalid VFIO group path: /dev/vfio/vfio",
    "dma-map": "qemu: vfio_container_dma_map: VFIO_MAP_DMA failed: Cannot allocate memory",
    "memory-lock": "vfio_pin_pages_remote: RLIMIT_MEMLOCK (8388608) exceeded",
    "iommufd-bind": "error bind device fd=33 to iommufd=12: Invalid argument",
    "not-viable": "vfio 0000:41:00.0: group 18 is not viable",
    "group-busy": "vfio: error opening /dev/vfio/18: Device or resource busy",
    "one-function": "qemu-system-x86_64: Duplicate device ID 'vfio-1'",
    "root-ports": "number of PCIe root ports 17 exceeds the limit of 16",
    "no-iommufd": "open /dev/iommu: No such file or directory",
    "bad-port": "invalid vfio_port=foo",
    "both-plugs": "HotPlugVFIO and ColdPlugVFIO are both set, only one of them can be set",
    "vfio-mode": "Unknown VFIO mode guest",
    "unknown-key": 'key "reconnect_timeout_ms" not found',
    "drop-in-folder": "read /opt/kata/config.d/..data: is a directory",
    "experimental": "Unsupported experimental feature force_guest_pull",
    "annotation": "annotation io.katacontainers.config.hypervisor.x is not enabled",
    "missing-file": "file /opt/kata/share/vmlinuz does not exist",
    "pod-resources": "rpc error: code = Unknown desc = PodResources API Get method disabled",
    "vsock": "timed out connecting to vsock 123456:1024",
    "fabric": "cuInit: system not yet initialized (802)",
    "admission": "Pod was rejected: UnexpectedAdmissionError: Allocate failed",
}


@pytest.mark.parametrize("name", failures.FAILURES)
def test_every_known_failure_is_found_by_what_is_said_of_it(name: str, kernel: FakeKernel) -> None:
    failure = failures.FAILURES[name]
    found = explained(kernel, Journal(f"pod {UID}: {SAMPLES[name]}"))
    (cause,) = found.causes
    assert cause.what.startswith(failure.cause)
    assert (cause.mend, cause.source) == (failure.mend, failure.source)
    assert found.actions[0] == failure.mend
    assert SAMPLES[name] in whole(found)


def test_unknown_key_of_runtime_rs_is_the_same_failure() -> None:
    found = failures.find("unknown field `dial_timeout`, expected one of `debug`")
    assert found is not None
    assert found[0] == "unknown-key"


def test_a_line_that_complains_of_nothing_known_is_none() -> None:
    assert failures.find("StartContainer for train-0 returns successfully") is None


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=500)
def test_no_line_takes_long(text: str) -> None:
    failures.find(text)
    failures.find((text + "/dev/vfio/1 annotation root port ") * 60)


# The command line


def explain(kernel: FakeKernel, *argv: str) -> Done:
    return run("explain", *argv, "--root", kernel.host.root)


def test_the_shell_gets_the_answer_and_its_status(kernel: FakeKernel) -> None:
    done = explain(kernel, "pod", "ml/train-0")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("pod ml/train-0 has 1 device,")
    (kernel.tree.root / "dev/vfio/1").unlink()
    assert explain(kernel, "pod", "ml/train-0").returncode == 3


def test_a_program_gets_the_causes(kernel: FakeKernel) -> None:
    (kernel.tree.root / "dev/vfio/1").unlink()
    found = json.loads(explain(kernel, "pod", "ml/train-0", "-o", "json").stdout)
    assert (found["pod"], found["uid"], found["is_in_order"]) == ("ml/train-0", UID, False)
    assert found["causes"][0].keys() == {"what", "mend", "source"}


def test_a_device_is_explained_as_before(kernel: FakeKernel) -> None:
    assert explain(kernel, nodes.GPU).stdout.startswith(f"{nodes.GPU} is available")


@pytest.mark.parametrize("argv", [["pod"], [nodes.GPU, "ml/train-0"]])
def test_half_a_question_is_wrong_usage(argv: list[str], kernel: FakeKernel) -> None:
    assert "cannot explain this" in complaint(explain(kernel, *argv), 64)


@pytest.mark.parametrize("name", ["train-0", "ml/", "/x", "../x", "ml/a/b", "ML/x", "m\x1b/x"])
def test_a_name_that_no_pod_has_is_wrong_usage(name: str, kernel: FakeKernel) -> None:
    done = explain(kernel, "pod", name)
    assert done.returncode == 64
    assert done.stderr.splitlines()[-1].isprintable()


def test_another_host_type_is_not_needed(tmp_path: Path) -> None:
    assert pods.uids(Host.at(tmp_path), "ml", "train-0") == ()
