"""The two runtimes' dialects as data: which keys there are, and what becomes of the others.

All that tells the Go runtime from runtime-rs is in this table; ``effective`` merges and judges
by it alone.

Source: Kata 4.1.0: src/runtime/pkg/katautils/config.go (structures, ``applyKey``,
``checkPCIeConfig``); src/libs/kata-types/src/config (agent.rs, runtime.rs, hypervisor/mod.rs,
drop_in.rs); src/runtime-rs/crates/runtimes/virt_container/src/sandbox.rs for the ports.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from types import MappingProxyType
from typing import Final

from kata_gpu.model.blueprint import Runtime
from kata_gpu.model.kata import EntryKind


class Kind(StrEnum):
    """The type of a value, in the words of a message."""

    STRING = "text"
    BOOL = "true or false"
    U32 = "a whole number of 0 to 4294967295"
    U64 = "a whole number, not negative"
    I64 = "a whole number"
    F32 = "a number"
    STRINGS = "an array of texts"
    TABLE = "a table"
    TABLES = "an array of tables"


class Unknown(Enum):
    """What becomes of a key that a table does not have."""

    SILENT = auto()
    IGNORED = auto()
    FATAL = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The keys of a kind of table."""

    keys: Mapping[str, Kind]
    in_base: Unknown
    """What becomes of another key in the base file."""

    in_drop_in: Unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A key that takes these words only; no word at all is always taken."""

    table: str
    key: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clash:
    """Two keys of the hypervisor that cannot both be set; *idle* values are not set."""

    one: str
    other: str
    idle: tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clamp:
    """A number of the hypervisor that is changed without a word when it is out of bounds."""

    key: str
    least: int = 0
    most: int | None = None
    instead: int
    """What counts then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A number of the agent that is refused below another one, or below *least*."""

    key: str
    least: int = 0
    not_below: str | None = None
    default: int
    """What counts where no file sets it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """All that one runtime does differently."""

    runtime: Runtime
    tables: Mapping[str, Table]
    """By the first word of the table's name."""

    hypervisors: frozenset[str]
    """Names that ``[hypervisor.NAME]`` may have."""

    refused_entries: frozenset[EntryKind]
    """Kinds of entries of config.d that stop every pod."""

    takes_one_hypervisor: bool
    """Whether a second hypervisor table leaves open which one counts."""

    ports: Mapping[str, tuple[str, ...]]
    """Ports for VFIO devices, by hypervisor; one that is not in it has none."""

    port_keys: tuple[str, ...]
    port_machines: frozenset[str] | None
    """Machine types whose ports are judged; None for all."""

    root_ports_max: int
    """Root ports that a guest can have."""

    choices: tuple[Choice, ...]
    clashes: tuple[Clash, ...]
    clamps: tuple[Clamp, ...]
    bounds: tuple[Bound, ...]
    required: tuple[tuple[str, str], ...]
    """Table and key without which it starts no pod."""

    paths: tuple[str, ...]
    """Keys of the hypervisor that name a file without which no pod starts."""

    empty: tuple[tuple[str, str], ...]
    """Table and key of arrays in which it takes no entry."""


def _keys(**kinds: str) -> Mapping[str, Kind]:
    """Return the keys of a table, each kind with its names in one text."""
    return MappingProxyType({n: Kind[kind] for kind, names in kinds.items() for n in names.split()})


_HYPERVISOR_STRINGS: Final = """
    path jailer_path kernel initrd image rootfs_type firmware machine_accelerators cpu_features
    kernel_params kernel_verity_params machine_type block_device_driver block_device_aio
    entropy_source shared_fs virtio_fs_daemon virtio_fs_cache vhost_user_store_path
    guest_hook_path guest_memory_dump_path extra_monitor_socket snp_id_block snp_id_auth
    cold_plug_vfio"""
_HYPERVISOR_ARRAYS: Final = """
    valid_hypervisor_paths valid_jailer_paths valid_virtio_fs_daemon_paths virtio_fs_extra_args
    pflashes valid_vhost_user_store_paths valid_entropy_sources enable_annotations"""
_HYPERVISOR_U32: Final = """
    virtio_fs_cache_size virtio_fs_queue_size default_maxvcpus default_memory memory_slots
    default_bridges pcie_root_port pcie_switch_port indep_iothreads
    block_device_logical_sector_size block_device_physical_sector_size
    tdx_quote_generation_service_socket_port"""
_HYPERVISOR_BOOLS: Final = """
    block_device_cache_set block_device_cache_direct block_device_cache_noflush
    enable_vhost_user_store disable_block_device_use enable_mem_prealloc
    reclaim_guest_freed_memory enable_hugepages enable_virtio_mem enable_iommu
    enable_iommu_platform enable_debug disable_nesting_checks enable_iothreads
    disable_image_nvdimm disable_vhost_net guest_memory_dump_paging confidential_guest
    sev_snp_guest enable_guest_swap rootless disable_seccomp disable_selinux
    disable_guest_selinux"""
_RUNTIME_STRINGS: Final = """
    internetworking_model jaeger_endpoint jaeger_user jaeger_password vfio_mode emptydir_mode
    dan_conf pod_resource_api_sock kubelet_root_dir"""
_RUNTIME_BOOLS: Final = """
    enable_debug enable_tracing disable_new_netns disable_guest_seccomp enable_vcpus_pinning
    sandbox_cgroup_only static_sandbox_resource_mgmt enable_pprof"""

_FILES: Final = ("path", "kernel", "image", "initrd", "firmware")
_VFIO_MODES: Final = Choice(table="runtime", key="vfio_mode", words=("vfio", "guest-kernel"))
_EMPTY_DIRS: Final = Choice(
    table="runtime", key="emptydir_mode", words=("shared-fs", "block-encrypted", "block-plain")
)
_IMAGES: Final = Clash(one="image", other="initrd", idle=("",))

GO: Final = Dialect(
    runtime=Runtime.GO,
    tables={
        "hypervisor": Table(
            keys=_keys(
                STRING=f"""{_HYPERVISOR_STRINGS} firmware_volume igvm seccompsandbox
                    remote_hypervisor_socket measurement_algo hot_plug_vfio""",
                STRINGS=f"{_HYPERVISOR_ARRAYS} numa_mapping",
                U32=f"""{_HYPERVISOR_U32} hypervisor_loglevel msize_9p remote_hypervisor_timeout
                    vhost_user_reconnect_timeout_sec""",
                U64="""rx_rate_limiter_max_rate tx_rate_limiter_max_rate memory_offset
                    default_maxmemory snp_guest_policy""",
                I64="""disk_rate_limiter_bw_max_rate disk_rate_limiter_bw_one_time_burst
                    disk_rate_limiter_ops_max_rate disk_rate_limiter_ops_one_time_burst
                    net_rate_limiter_bw_max_rate net_rate_limiter_bw_one_time_burst
                    net_rate_limiter_ops_max_rate net_rate_limiter_ops_one_time_burst""",
                F32="default_vcpus",
                BOOL=f"{_HYPERVISOR_BOOLS} enable_numa use_legacy_serial",
            ),
            in_base=Unknown.SILENT,
            in_drop_in=Unknown.FATAL,  # applyKey looks its field up by reflection
        ),
        "agent": Table(
            keys=_keys(
                STRINGS="kernel_modules",
                BOOL="enable_debug enable_tracing debug_console_enabled visible_cdi_devices",
                U32="dial_timeout cdh_api_timeout launch_process_timeout",
            ),
            in_base=Unknown.SILENT,
            in_drop_in=Unknown.FATAL,
        ),
        "runtime": Table(
            keys=_keys(
                STRING=f"{_RUNTIME_STRINGS} guest_selinux_label",
                STRINGS="sandbox_bind_mounts experimental",
                BOOL=f"{_RUNTIME_BOOLS} disable_guest_empty_dir experimental_force_guest_pull",
                U64="create_container_timeout",
            ),
            in_base=Unknown.SILENT,
            in_drop_in=Unknown.IGNORED,
        ),
        "factory": Table(
            keys=_keys(
                STRING="template_path vm_cache_endpoint",
                U64="vm_cache_number",
                BOOL="enable_template",
            ),
            in_base=Unknown.SILENT,
            in_drop_in=Unknown.IGNORED,
        ),
    },
    hypervisors=frozenset({"firecracker", "qemu", "clh", "dragonball", "stratovirt", "remote"}),
    refused_entries=frozenset({EntryKind.DIRECTORY, EntryKind.OTHER}),
    takes_one_hypervisor=True,
    ports={
        "qemu": ("no-port", "bridge-port", "root-port", "switch-port"),
        "clh": ("no-port", "root-port"),
    },
    port_keys=("cold_plug_vfio", "hot_plug_vfio"),
    port_machines=frozenset({"q35", "virt"}),
    root_ports_max=16,
    choices=(_VFIO_MODES, _EMPTY_DIRS),
    clashes=(_IMAGES, Clash(one="cold_plug_vfio", other="hot_plug_vfio", idle=("", "no-port"))),
    clamps=(
        Clamp(key="pcie_root_port", most=16, instead=16),
        Clamp(key="pcie_switch_port", most=16, instead=16),
        Clamp(key="default_memory", least=256, instead=2048),
        Clamp(key="default_bridges", most=5, instead=5),
    ),
    bounds=(),
    required=(),
    paths=(*_FILES, "firmware_volume"),
    empty=(("runtime", "experimental"),),  # no feature is registered
)

RUST: Final = Dialect(
    runtime=Runtime.RUST,
    tables={
        "hypervisor": Table(
            keys=_keys(
                STRING=f"""{_HYPERVISOR_STRINGS} ctlpath vm_rootfs_driver log_level hugepage_type
                    guest_swap_path initdata seccomp_sandbox selinux_label prefetch_list_path
                    hypervisor_socket default_gpu_model memory_path device_state_path""",
                STRINGS=f"{_HYPERVISOR_ARRAYS} valid_ctlpaths",
                U32=f"""{_HYPERVISOR_U32} default_maxmemory queue_size num_queues network_queues
                    snp_guest_policy default_gpus vhost_user_reconnect_timeout_sec""",
                U64="""memory_offset rx_rate_limiter_max_rate tx_rate_limiter_max_rate
                    disk_rate_limiter_bw_max_rate disk_rate_limiter_bw_one_time_burst
                    disk_rate_limiter_ops_max_rate disk_rate_limiter_ops_one_time_burst
                    guest_swap_size_percent guest_swap_create_threshold_secs""",
                I64="hypervisor_timeout",
                F32="default_vcpus overhead_vcpus overhead_memory",
                BOOL=f"{_HYPERVISOR_BOOLS} virtio_fs_is_dax boot_to_be_template boot_from_template",
                TABLES="guest_extension_images",
                TABLE="factory rootless_user",
            ),
            in_base=Unknown.SILENT,
            in_drop_in=Unknown.IGNORED,
        ),
        "agent": Table(  # deny_unknown_fields
            keys=_keys(
                STRING="log_level",
                STRINGS="kernel_modules",
                BOOL="enable_debug enable_tracing debug_console_enabled visible_cdi_devices",
                U32="""server_port log_port passfd_listener_port dial_timeout_ms
                    reconnect_timeout_ms request_timeout_ms health_check_request_timeout_ms
                    cdh_api_timeout_ms create_container_timeout launch_process_timeout
                    container_pipe_size""",
                TABLE="mem_agent",
            ),
            in_base=Unknown.FATAL,
            in_drop_in=Unknown.FATAL,
        ),
        "runtime": Table(
            keys=_keys(
                STRING=f"{_RUNTIME_STRINGS} name hypervisor_name agent_name log_level",
                STRINGS="sandbox_bind_mounts experimental",
                BOOL=f"{_RUNTIME_BOOLS} keep_abnormal use_passfd_io",
                U32="passfd_listener_port",
                TABLES="shared_mounts",
            ),
            in_base=Unknown.SILENT,
            in_drop_in=Unknown.IGNORED,
        ),
        "factory": Table(
            keys=_keys(STRING="template_path", BOOL="enable_template"),
            in_base=Unknown.FATAL,
            in_drop_in=Unknown.FATAL,
        ),
    },
    hypervisors=frozenset(
        {"qemu", "dragonball", "cloud-hypervisor", "firecracker", "remote", "openvmm"}
    ),
    refused_entries=frozenset({EntryKind.LINK, EntryKind.DIRECTORY, EntryKind.OTHER}),
    takes_one_hypervisor=False,
    ports={"qemu": ("no-port", "root-port")},
    port_keys=("cold_plug_vfio",),
    port_machines=None,
    root_ports_max=22,  # slots left on its root bus
    choices=(_VFIO_MODES, _EMPTY_DIRS),
    clashes=(_IMAGES, Clash(one="pcie_root_port", other="pcie_switch_port", idle=(0,))),
    clamps=(Clamp(key="default_bridges", most=5, instead=5),),
    bounds=(
        Bound(key="dial_timeout_ms", least=1, default=10),
        Bound(key="reconnect_timeout_ms", not_below="dial_timeout_ms", default=3000),
    ),
    required=(("runtime", "name"), ("runtime", "hypervisor_name"), ("runtime", "agent_name")),
    paths=_FILES,
    empty=(),
)

DIALECTS: Final[Mapping[Runtime, Dialect]] = {Runtime.GO: GO, Runtime.RUST: RUST}
