"""The systemd unit starts what there is, and forbids nothing that the agent needs."""

import re
from pathlib import Path, PurePath

from kata_gpu.model.runtime import PLACES
from kata_gpu.settings.agent import Kubernetes, Settings

UNIT = Path(__file__).parents[1] / "systemd/kata-gpu.service"


def service() -> dict[str, str]:
    lines = UNIT.read_text().partition("[Service]")[2].partition("[Install]")[0].splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_it_waits_for_ready_and_reloads_by_signal() -> None:
    assert service()["Type"] == "notify"
    assert service()["ExecStart"].split()[1:] == ["run"]
    assert "HUP" in service()["ExecReload"]


def test_the_agent_can_do_its_work_in_it() -> None:
    forbidden = {
        *("ProtectKernelTunables", "PrivateDevices", "PrivateNetwork", "PrivateUsers"),
        *("ProtectKernelModules", "ProtectProc", "DynamicUser"),
    }
    assert not forbidden & set(service())
    assert service()["ProtectSystem"] == "strict"
    assert {"/run", "/opt"} <= written()
    assert service()["StateDirectory"] == "kata-gpu"


def written() -> set[str]:
    """Return the folders that may be written to, whether they must be there or not."""
    lines = re.findall(r"^ReadWritePaths=(.*)$", UNIT.read_text(), re.MULTILINE)
    return {path.lstrip("-") for line in lines for path in line.split()}


def test_every_file_of_ours_can_be_written_in_it() -> None:
    settings = Settings(kubernetes=Kubernetes())
    assert settings.kubernetes is not None
    paths = [
        *(settings.socket, settings.cdi_directory, "/etc/cdi"),
        *(settings.kubernetes.kubelet_directory, "/opt/kata", "/usr/share/defaults"),
        *(place.drop_ins for place in PLACES.values() if place.drop_ins),
    ]
    for path in paths:
        parents = {*map(str, PurePath(path).parents)}
        assert written() & {path, *parents}, path


def test_its_capabilities_are_few() -> None:
    assert set(service()["CapabilityBoundingSet"].split()) == {
        *("CAP_SYS_MODULE", "CAP_SYS_PTRACE", "CAP_CHECKPOINT_RESTORE", "CAP_DAC_READ_SEARCH"),
        "CAP_NET_ADMIN",
    }
