"""The container runtimes of a node, as found: containerd in its many homes, and CRI-O.

Source: containerd's docs/man/containerd-config.toml.5; kata-deploy 4.1.0, config.rs; the manuals
of k3s, RKE2, k0s and CRI-O.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from kata_gpu.model.blueprint import RuntimeKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a kind of container runtime has its things, if a node has it."""

    main: str
    """The file that is read first."""

    drop_ins: str | None
    """The folder for other people's files; None where there is none."""

    drop_ins_v3: str | None = None
    """The folder for files of configuration version 3, where that is another."""

    services: tuple[str, ...]
    """Its systemd services, of which a node runs one at most."""

    programs: tuple[str, ...]
    """Where the program may lie that tells its version."""

    signs: tuple[str, ...] = ()
    """Paths that show, beside *main*, that the node has it."""

    def folder(self, version: int) -> str | None:
        """Return the folder for drop-ins of a configuration version."""
        return (self.drop_ins_v3 if version > 2 else None) or self.drop_ins  # noqa: PLR2004


def _rancher(name: str, services: tuple[str, ...], program: str) -> Place:
    home = f"/var/lib/rancher/{name}/agent/etc/containerd"
    return Place(
        main=f"{home}/config.toml",
        drop_ins=f"{home}/config.toml.d",
        drop_ins_v3=f"{home}/config-v3.toml.d",
        services=services,
        programs=(program,),
        signs=(home,),
    )


PLACES: Final[Mapping[RuntimeKind, Place]] = MappingProxyType(
    {
        RuntimeKind.CONTAINERD: Place(
            main="/etc/containerd/config.toml",
            drop_ins="/etc/containerd/conf.d",
            services=("containerd.service",),
            programs=("/usr/bin/containerd", "/usr/local/bin/containerd"),
        ),
        RuntimeKind.K3S: _rancher(
            "k3s",
            ("k3s.service", "k3s-agent.service"),
            "/var/lib/rancher/k3s/data/current/bin/containerd",
        ),
        RuntimeKind.RKE2: _rancher(
            "rke2",
            ("rke2-server.service", "rke2-agent.service"),
            "/var/lib/rancher/rke2/bin/containerd",
        ),
        RuntimeKind.K0S: Place(
            main="/etc/k0s/containerd.toml",
            drop_ins="/etc/k0s/containerd.d",
            services=("k0sworker.service", "k0scontroller.service"),
            programs=("/var/lib/k0s/bin/containerd",),
        ),
        RuntimeKind.MICROK8S: Place(
            main="/var/snap/microk8s/current/args/containerd.toml",
            drop_ins=None,
            services=("snap.microk8s.daemon-containerd.service",),
            programs=("/snap/microk8s/current/bin/containerd",),
        ),
        RuntimeKind.CRIO: Place(
            main="/etc/crio/crio.conf",
            drop_ins="/etc/crio/crio.conf.d",
            services=("crio.service",),
            programs=("/usr/bin/crio", "/usr/local/bin/crio"),
            signs=("/etc/crio/crio.conf.d",),
        ),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeFile:
    """One file of a container runtime's configuration."""

    path: str
    tables: Mapping[str, Any] | None
    """What it says; None when it cannot be read or is not TOML."""

    problem: str | None = None
    """Why there are no *tables*; None when there are."""

    modified_at_s: float | None = None
    """When it was last written, in seconds since the epoch; None when that is unknown."""

    @property
    def imports(self) -> tuple[str, ...]:
        """The patterns of further files, as absolute paths."""
        said = (self.tables or {}).get("imports")
        words = [word for word in said if isinstance(word, str)] if isinstance(said, list) else []
        folder = self.path.rpartition("/")[0]
        return tuple(word if word.startswith("/") else f"{folder}/{word}" for word in words)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerRuntime:
    """A container runtime of the node."""

    kind: RuntimeKind
    version: str | None
    """As in 1.7.27; None when the program cannot be asked."""

    files: tuple[RuntimeFile, ...]
    """In the order in which it merges them; the main file is first, where there is one."""

    is_managed: bool = False
    """Whether the distribution writes the main file, and merges what we drop in by itself."""

    service: str | None = None
    """The service that runs it; None when none is known to."""

    started_at_s: float | None = None
    """When that was started, in seconds since the epoch; None when that is unknown."""

    @property
    def place(self) -> Place:
        """Where it has its things."""
        return PLACES[self.kind]

    @property
    def main(self) -> RuntimeFile | None:
        """The file that it reads first; None where there is none."""
        return next((file for file in self.files if file.path == self.place.main), None)

    def file(self, path: str) -> RuntimeFile | None:
        """Return the file at *path*; None when it reads no such file."""
        return next((file for file in self.files if file.path == path), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What lies at a path that a container runtime's configuration names."""

    real: str | None
    """The path behind links; None when nothing is there, or nobody may look."""

    is_executable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """One handler of a container runtime, and what it leads to."""

    handler: str
    runtime: RuntimeKind
    file: str | None
    """The file that defines it, or would if it is wired by nobody; None for no such file."""

    is_wired: bool
    is_ours: bool
    """Whether the blueprint has the handler wired by this agent."""

    runtime_type: str | None = None
    shim: str | None = None
    is_shim_executable: bool | None = None
    """None when nobody can tell: the container runtime looks for it in its own PATH."""

    config: str | None = None
    has_config: bool | None = None
    """Whether the base file is there; None when none is named."""

    snapshotter: str | None = None
    runtime_class: str | None = None
    """The RuntimeClass that ``kata-gpu runtime render`` makes for it; None for none."""

    faults: tuple[str, ...] = field(default=())
