"""The agent's settings file: TOML in, ``settings.agent`` out."""

import contextlib
import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from kata_gpu.settings import toml_file
from kata_gpu.settings.agent import Endpoint, Kubernetes, Settings
from kata_gpu.settings.toml_file import AbsolutePath, Table

_PORT_MAX: Final = 65535
SOCKET_PATH_MAX_BYTES: Final = 107  # sun_path less its final zero, unix(7)


def _fits_sun_path(path: str) -> str:
    length = len(path.encode())
    if length > SOCKET_PATH_MAX_BYTES:
        raise ValueError(
            f"a socket's path has at most {SOCKET_PATH_MAX_BYTES} bytes and this one {length}; "
            f"choose a shorter one, below /run"
        )
    return path


def _can_be_connected_to(path: str) -> None:
    try:
        _fits_sun_path(path)
    except ValueError as error:
        raise ValueError(f"cannot ask {path}: {error}") from error


def _octal(text: Any) -> int:
    if not isinstance(text, str) or not re.fullmatch(r"0[0-7]{3}", text):
        raise ValueError('expected a file mode in quotes, such as "0660"')
    return int(text, 8)


_DEFAULTS: Final = Settings()
_NODE: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


def _node_name(text: str) -> str:
    if not _NODE.fullmatch(text):
        raise ValueError("expected a node's name: lower-case letters, digits, dots and dashes")
    return text


class KubernetesTable(Table):
    """``[kubernetes]``: there is one where the agent serves kubelet."""

    node_name: Annotated[str, AfterValidator(_node_name)] | None = None
    kubelet_directory: AbsolutePath = Kubernetes().kubelet_directory
    kubeconfig: AbsolutePath | None = None
    api: bool = True
    start_spread_s: float = Field(Kubernetes().start_spread_s, ge=0, le=600)
    device_metadata: bool = False
    features_directory: AbsolutePath | None = None

    def value(self) -> Kubernetes:
        """Return the settings."""
        return Kubernetes(**dict(self))


def _endpoint(text: Any) -> Endpoint:
    if isinstance(text, str):
        address, _, port = text.rpartition(":")
        with contextlib.suppress(ValueError):
            return Endpoint(address=str(_address(address)), port=_port(port))
    raise ValueError('expected an IP address and a port, such as "127.0.0.1:9400" or "[::1]:9400"')


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    if text.startswith("[") and text.endswith("]"):
        return ipaddress.IPv6Address(text[1:-1])
    return ipaddress.IPv4Address(text)


def _port(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,4}", text, re.ASCII) or int(text) > _PORT_MAX:
        raise ValueError
    return int(text)


class MetricsTable(Table):
    """``[metrics]``: where they are read without the status socket."""

    listen: Annotated[Endpoint, BeforeValidator(_endpoint)]


class SettingsFile(Table):
    """``agent.toml``."""

    blueprint: AbsolutePath = _DEFAULTS.blueprint
    state_directory: AbsolutePath = _DEFAULTS.state_directory
    socket: Annotated[AbsolutePath, AfterValidator(_fits_sun_path)] = _DEFAULTS.socket
    socket_mode: Annotated[int, BeforeValidator(_octal)] = _DEFAULTS.socket_mode
    cdi_directory: AbsolutePath = _DEFAULTS.cdi_directory
    kata_prefixes: tuple[AbsolutePath, ...] = _DEFAULTS.kata_prefixes
    rescan_interval_s: float = Field(_DEFAULTS.rescan_interval_s, ge=1, le=60)
    settle_s: float = Field(_DEFAULTS.settle_s, ge=0, le=10)
    operation_timeout_s: float = Field(_DEFAULTS.operation_timeout_s, ge=1, le=600)
    metrics: MetricsTable | None = None
    kubernetes: KubernetesTable | None = None

    def value(self) -> Settings:
        """Return the settings."""
        found = dict(self)
        return Settings(
            **{
                **found,
                "metrics": self.metrics and self.metrics.listen,
                "kubernetes": self.kubernetes and self.kubernetes.value(),
            }
        )

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        """Refuse folders in which a socket, or the link to one, would have too long a path."""
        if self.kubernetes is not None:
            asked = Settings(
                state_directory=self.state_directory, kubernetes=self.kubernetes.value()
            ).pod_resources
            for path in filter(None, (asked.kubelet, asked.link)):
                _can_be_connected_to(path)
        return self


def load(path: Path) -> Settings:
    """Return the settings that the file at *path* makes; InvalidBlueprint says what is wrong."""
    return toml_file.load(path, SettingsFile).value()
