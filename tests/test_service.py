"""The systemd unit starts what there is, and forbids nothing that the agent needs."""

from pathlib import Path

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
    assert {"/run", "-/opt"} <= set(service()["ReadWritePaths"].split())
    assert service()["StateDirectory"] == "kata-gpu"


def test_its_capabilities_are_few() -> None:
    assert set(service()["CapabilityBoundingSet"].split()) == {
        *("CAP_SYS_MODULE", "CAP_SYS_PTRACE", "CAP_CHECKPOINT_RESTORE", "CAP_DAC_READ_SEARCH"),
        "CAP_NET_ADMIN",
    }
