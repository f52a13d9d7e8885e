"""The blueprint file: TOML in, ``model.blueprint`` out."""

import re
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from kata_gpu.model import blueprint as model
from kata_gpu.model.blueprint import Blueprint, Drift, KataHandler, Mode, Pool, Runtime, Selector
from kata_gpu.model.inventory import DROP_IN_NAME
from kata_gpu.model.kubernetes import BindWhen, Door
from kata_gpu.model.pci import PciAddress
from kata_gpu.settings import toml_file
from kata_gpu.settings.toml_file import AbsolutePath, Table
from kata_gpu.settings.wiring import RuntimeTable

_ID: Final = re.compile(r"(0x)?[0-9a-f]{4}")
_CLASS: Final = re.compile(r"(0x)?[0-9a-f]{2,6}")
_LABEL: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_HANDLER: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_RESOURCE: Final = re.compile(
    r"[a-z0-9][a-z0-9-]*(\.[a-z0-9-]+)+/[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
)
_UNIT: Final = re.compile(r"[0-9a-f]{4,8}-[0-9a-f]{2}-[0-9a-f]{2}-[0-7]")
_SERVICE: Final = re.compile(r"(?!.*@\.service$)[A-Za-z0-9][A-Za-z0-9@:._-]{0,246}\.service")
_PARAMETER: Final = re.compile(r"[!-~]{1,256}")
_WILDCARDS: Final = frozenset("*?[")
_TIMEOUT_MAX_S: Final = 24 * 3600
_MEMORY_MIN_MIB: Final = 256  # Kata's go runtime goes by 2048 below it
_U32_MAX: Final = (1 << 32) - 1
_ADVICE: Final = "write it (configs/blueprint.toml is an example), or name another by --blueprint"
_HYPERVISORS: Final = {Runtime.GO: ("qemu", "clh"), Runtime.RUST: ("qemu",)}


def _hex(pattern: re.Pattern[str], digits: str, text: Any) -> str:
    if not isinstance(text, str) or not pattern.fullmatch(text):
        raise ValueError(f"expected {digits} lower-case hex digits in quotes")
    return text.removeprefix("0x")


def _spelt(pattern: re.Pattern[str], expected: str) -> AfterValidator:
    """Refuse text of another form, in words instead of the pattern."""

    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError(f"expected {expected}")
        return text

    return AfterValidator(check)


def _word(*words: str) -> AfterValidator:
    """Refuse text that is none of *words*."""

    def check(text: str) -> str:
        if text not in words:
            raise ValueError(f"expected one of {', '.join(words)}")
        return text

    return AfterValidator(check)


def _no_unit(text: str) -> str:
    """Refuse what a ResourceSlice calls a unit."""
    if _UNIT.fullmatch(text):
        raise ValueError("expected a name that could not be a unit's, such as hgx")
    return text


def _pattern(text: str) -> str:
    """Refuse what is no regular expression; Go's and Rust's have no more than Python's, mostly."""
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"expected a regular expression: {error}") from error
    return text


def _pci_id(text: Any) -> int:
    return int(_hex(_ID, "4", text), 16)


def _class(text: Any) -> str:
    return _hex(_CLASS, "2 to 6", text)


def _address(text: Any) -> PciAddress:
    if not isinstance(text, str):
        raise ValueError("expected DDDD:BB:DD.F in quotes")  # noqa: TRY004 - pydantic wants it
    return PciAddress.parse(text)


def _known_schema(schema: int) -> int:
    if schema != model.SCHEMA:
        raise ValueError(f"this agent knows schema {model.SCHEMA}")
    return schema


_Word = Mode | Runtime | Drift | Door | BindWhen


def _one_of(kind: type[_Word]) -> BeforeValidator:
    """Take the exact words of an enumeration; strict mode would want the enumeration."""
    words = [member.value for member in kind]

    def parse(text: Any) -> _Word:
        if text not in words:
            raise ValueError(f"expected one of {', '.join(words)}")
        return kind(text)

    return BeforeValidator(parse)


_PciId = Annotated[int, BeforeValidator(_pci_id)]
_Label = Annotated[
    str,
    _spelt(
        _LABEL,
        "at most 63 letters, digits, dots, dashes and underscores, between two letters or digits",
    ),
]
_HandlerName = Annotated[
    str, _spelt(_HANDLER, "at most 63 lower-case letters, digits and dashes, as RuntimeClass has")
]
_KernelParameter = Annotated[
    str, _spelt(_PARAMETER, "one parameter, of at most 256 visible ASCII characters, no blanks")
]
_Annotation = Annotated[
    str,
    Field(min_length=1, max_length=256),
    AfterValidator(_pattern),
]
_Service = Annotated[
    str, _spelt(_SERVICE, "the full name of a systemd service, such as nvidia-dcgm.service")
]
_Bundle = Annotated[
    str,
    _spelt(_HANDLER, "at most 63 lower-case letters, digits and dashes, as a DNS label has"),
    AfterValidator(_no_unit),
]
_Resource = Annotated[str, _spelt(_RESOURCE, "vendor.tld/class, such as nvidia.com/pgpu")]


class SelectorTable(Table):
    """``[[pool.select]]``: conditions that must all hold."""

    vendor: _PciId | None = None
    device: _PciId | None = None
    class_prefix: Annotated[str, BeforeValidator(_class)] | None = Field(None, alias="class")
    address: Annotated[PciAddress, BeforeValidator(_address)] | None = None
    numa_node: Annotated[int, Field(ge=0)] | None = None
    product: Annotated[str, Field(min_length=1, max_length=256)] | None = None

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("a selector needs at least one condition")
        return self

    def value(self) -> Selector:
        """Return the selector."""
        return Selector(
            vendor=self.vendor,
            device=self.device,
            class_prefix=self.class_prefix,
            address=self.address,
            numa_node=self.numa_node,
            product=self.product,
        )


class PoolTable(Table):
    """``[[pool]]``: functions and what becomes of them."""

    name: _Label
    mode: Annotated[Mode, _one_of(Mode)]
    select: tuple[SelectorTable, ...] = Field(min_length=1)
    resource: _Resource | None = None
    min_units: int = Field(0, ge=0)
    max_units: int | None = Field(None, ge=0)
    stop_services: tuple[_Service, ...] = ()
    virtual_functions: int | None = Field(None, ge=1)
    offer: Annotated[Door, _one_of(Door)] = Door.DEVICE_PLUGIN
    bind: Annotated[BindWhen, _one_of(BindWhen)] = BindWhen.ALWAYS
    bundle: _Bundle | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.mode is Mode.PASSTHROUGH and self.resource is None:
            raise ValueError('mode "passthrough" needs a resource, such as "nvidia.com/pgpu"')
        if self.mode is not Mode.PASSTHROUGH and self.resource is not None:
            raise ValueError(f'mode "{self.mode}" offers nothing, so it takes no resource')
        if self.mode is not Mode.PASSTHROUGH and self.stop_services:
            raise ValueError(f'mode "{self.mode}" takes no driver away, so it stops no services')
        if self.mode is not Mode.PASSTHROUGH and self.virtual_functions is not None:
            raise ValueError(f'mode "{self.mode}" makes nothing, so it takes no virtual_functions')
        if self.max_units is not None and self.max_units < self.min_units:
            raise ValueError("max_units is less than min_units")
        return self

    @model_validator(mode="after")
    def _can_be_offered(self) -> Self:
        said = {"offer", "bind", "bundle"} & self.model_fields_set
        if self.mode is not Mode.PASSTHROUGH and said:
            raise ValueError(
                f'mode "{self.mode}" offers nothing, so it takes no {", ".join(sorted(said))}'
            )
        if self.bind is BindWhen.ON_CLAIM and self.offer is not Door.DRA:
            raise ValueError(
                f'bind "{self.bind}" needs offer "{Door.DRA}": the device plugin has no moment '
                f"for it"
            )
        if self.bundle is not None and self.offer is Door.NONE:
            raise ValueError('offer "none" offers nothing, so it takes no bundle')
        return self

    def value(self) -> Pool:
        """Return the pool."""
        return Pool(
            name=self.name,
            mode=self.mode,
            selectors=tuple(selector.value() for selector in self.select),
            resource=self.resource,
            min_units=self.min_units,
            max_units=self.max_units,
            stop_services=self.stop_services,
            virtual_functions=self.virtual_functions,
            door=self.offer,
            bind=self.bind,
            bundle=self.bundle,
        )


class HandlerTable(Table):
    """``[[kata.handler]]``: a Kata runtime handler that gets our drop-in.

    What runtimes refuse is refused here, where its author reads why.
    """

    name: _HandlerName
    runtime: Annotated[Runtime, _one_of(Runtime)]
    config: AbsolutePath
    hypervisor: str = "qemu"
    pod_resource_api_sock: AbsolutePath | None = None
    pcie_root_ports: int | None = Field(None, ge=1, le=32)
    cold_plug_vfio: Annotated[str, _word("root-port", "no-port")] = "root-port"
    hot_plug_vfio: Annotated[str, _word("root-port", "no-port")] = "no-port"
    vfio_mode: Annotated[str, _word("guest-kernel", "vfio")] = "guest-kernel"
    memory_mib: int | None = Field(None, ge=_MEMORY_MIN_MIB, le=_U32_MAX)
    kernel_params: tuple[_KernelParameter, ...] = ()
    enable_annotations: tuple[_Annotation, ...] = ()
    dial_timeout_s: int | None = Field(None, ge=1, le=_TIMEOUT_MAX_S)
    create_container_timeout_s: int | None = Field(None, ge=1, le=_TIMEOUT_MAX_S)
    cdh_api_timeout_s: int | None = Field(None, ge=1, le=_TIMEOUT_MAX_S)
    launch_process_timeout_s: int | None = Field(None, ge=1, le=_TIMEOUT_MAX_S)
    confidential: Annotated[str, _word("snp", "tdx", "none")] | None = None

    @model_validator(mode="after")
    def _can_cold_plug(self) -> Self:
        known = _HYPERVISORS[self.runtime]
        if self.hypervisor not in known:
            raise ValueError(
                f"Kata's {self.runtime} runtime cold-plugs VFIO devices with hypervisor "
                f"{' or '.join(known)} only"
            )
        return self

    @model_validator(mode="after")
    def _has_ports(self) -> Self:
        from kata_gpu.plan.kata.dialect import DIALECTS  # noqa: PLC0415 - for who has handlers

        limit = DIALECTS[self.runtime].root_ports_max
        if self.pcie_root_ports is not None and self.pcie_root_ports > limit:
            raise ValueError(
                f"pcie_root_ports is {self.pcie_root_ports}, and a guest of Kata's {self.runtime} "
                f"runtime has at most {limit}"
            )
        if self.hot_plug_vfio == "no-port":
            return self
        if self.runtime is Runtime.RUST:
            raise ValueError("hot_plug_vfio is of Kata's go runtime; the rust one has it not")
        if self.cold_plug_vfio != "no-port":
            raise ValueError(
                "hot_plug_vfio and cold_plug_vfio exclude each other: Kata starts no pod with both"
            )
        return self

    @model_validator(mode="after")
    def _keeps_its_measurement(self) -> Self:
        tee = self.confidential or model.tee_of(self.name)
        if tee != "none" and self.kernel_params:
            raise ValueError(
                f"kernel_params would change the measurement of {tee} guests, which no longer "
                f"attest then; remove it"
            )
        if tee != "none" and self.hot_plug_vfio != "no-port":
            raise ValueError(f"{tee} guests take devices at their start only: no hot_plug_vfio")
        return self

    def value(self) -> KataHandler:
        """Return the handler."""
        return KataHandler(**dict(self))


def _foreign(pattern: str) -> str:
    if not pattern or "/" in pattern or not pattern.isprintable():
        raise ValueError("expected a pattern for a file's name, such as nvidia.com-*.yaml")
    if not pattern.strip("*?[]!."):
        raise ValueError("it would take everybody's files; name their owner in it")
    return pattern


def _foreign_drop_in(pattern: str) -> str:
    """Refuse what means everybody's drop-ins too: most names are a number and ``.toml``."""
    _foreign(pattern)
    owner = pattern.removesuffix(".toml").strip("*?[]!.-_0123456789")
    if not owner and not _WILDCARDS.isdisjoint(pattern):
        raise ValueError("it would take everybody's files; name their owner in it")
    if pattern == DROP_IN_NAME:
        raise ValueError("it is this agent's own; remove the handler from the blueprint instead")
    return pattern


class KataTable(Table):
    """``[kata]``: what Kata is told, and what becomes of other people's drop-ins."""

    quarantine: tuple[Annotated[str, AfterValidator(_foreign_drop_in)], ...] = ()
    handler: tuple[HandlerTable, ...] = ()


class CdiTable(Table):
    """``[cdi]``: what becomes of other people's CDI files."""

    quarantine: tuple[Annotated[str, AfterValidator(_foreign)], ...] = ()


class BlueprintFile(Table):
    """The whole file."""

    schema_version: Annotated[int, AfterValidator(_known_schema)] = Field(alias="schema")
    version: _Label
    drift: Annotated[Drift, _one_of(Drift)] = Drift.REPAIR
    pool: tuple[PoolTable, ...] = ()
    kata: KataTable = KataTable()
    cdi: CdiTable = CdiTable()
    runtime: RuntimeTable = RuntimeTable()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for what, names in (
            ("pool", [pool.name for pool in self.pool]),
            ("bundle", [pool.bundle for pool in self.pool if pool.bundle]),
            ("handler", [handler.name for handler in self.kata.handler]),
            ("runtime handler", self.runtime.names()),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what} {', '.join(twice)} is there twice")
        self.runtime.require_bases([handler.name for handler in self.kata.handler])
        return self

    def value(self) -> Blueprint:
        """Return the blueprint."""
        return Blueprint(
            version=self.version,
            drift=self.drift,
            pools=tuple(pool.value() for pool in self.pool),
            handlers=tuple(handler.value() for handler in self.kata.handler),
            cdi_quarantine=self.cdi.quarantine,
            kata_quarantine=self.kata.quarantine,
            wiring=self.runtime.value(),
        )


def load(path: Path) -> Blueprint:
    """Return the blueprint at *path*; InvalidBlueprint says what is wrong with it."""
    return toml_file.load(path, BlueprintFile, advice=_ADVICE).value()


def parse(text: str, *, origin: str = "blueprint.toml") -> Blueprint:
    """Return the blueprint that TOML *text* describes."""
    return toml_file.parse(text, BlueprintFile, origin=origin).value()
