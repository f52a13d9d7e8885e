"""The messages are those that kubelet speaks: by bytes, since names do not travel.

The bytes were put together from the field numbers and wire types of kubelet's own definitions,
not by protobuf. Maps and optional fields are on the wire what messages and plain ones are.
"""

from types import ModuleType
from typing import Any, Final

import pytest
from google.protobuf.message import Message

from kata_gpu.publish.kubelet.protos import (
    device_plugin_v1beta1_pb2,
    dra_health_v1_pb2,
    dra_health_v1alpha1_pb2,
    dra_v1_pb2,
    dra_v1beta1_pb2,
    plugin_registration_v1_pb2,
    pod_resources_v1_pb2,
)

PLUGIN: Final = device_plugin_v1beta1_pb2
METHODS: Final = {
    "v1beta1.Registration": (PLUGIN, "Register"),
    "v1beta1.DevicePlugin": (
        PLUGIN,
        "GetDevicePluginOptions ListAndWatch* GetPreferredAllocation Allocate PreStartContainer",
    ),
    "pluginregistration.Registration": (
        plugin_registration_v1_pb2,
        "GetInfo NotifyRegistrationStatus",
    ),
    "k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin": (
        dra_v1_pb2,
        "NodePrepareResources NodeUnprepareResources",
    ),
    "k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin": (
        dra_v1beta1_pb2,
        "NodePrepareResources NodeUnprepareResources",
    ),
    "v1.DRAResourceHealth": (dra_health_v1_pb2, "NodeWatchResources*"),
    "v1alpha1.DRAResourceHealth": (dra_health_v1alpha1_pb2, "NodeWatchResources*"),
    "v1.PodResourcesLister": (pod_resources_v1_pb2, "List GetAllocatableResources Get"),
}

CLAIM: Final = {"namespace": "ml", "uid": "u-1", "name": "c"}
CLAIM_BYTES: Final = b"\x0a\x02ml\x12\x03u-1\x1a\x01c"
PREPARED: Final = {
    "claims": {
        "u": {
            "devices": [
                {
                    "request_names": ["gpu"],
                    "pool_name": "n1",
                    "device_name": "d0",
                    "cdi_device_ids": ["a/b=c"],
                }
            ],
            "error": "no",
        }
    }
}
PREPARED_BYTES: Final = (
    b"\x0a\x1f\x0a\x01u\x12\x1a"  # entry of the map: key, value
    b"\x0a\x14\x0a\x03gpu\x12\x02n1\x1a\x02d0\x22\x05a/b=c"
    b"\x12\x02no"
)
HEALTH: Final = {
    "devices": [
        {
            "device": {"pool_name": "n1", "device_name": "d0"},
            "health": 2,
            "last_updated_time": 300,
            "health_check_timeout_seconds": 30,
            "message": "gone",
        }
    ]
}
HEALTH_BYTES: Final = (
    b"\x0a\x17\x0a\x08\x0a\x02n1\x12\x02d0\x10\x02\x18\xac\x02\x20\x1e\x2a\x04gone"
)

RECORDED: Final[list[tuple[ModuleType, str, dict[str, Any], bytes]]] = [
    (
        PLUGIN,
        "RegisterRequest",
        {
            "version": "v1beta1",
            "endpoint": "a.sock",
            "resource_name": "a.io/b",
            "options": {"pre_start_required": True, "get_preferred_allocation_available": True},
        },
        b"\x0a\x07v1beta1\x12\x06a.sock\x1a\x06a.io/b\x22\x04\x08\x01\x10\x01",
    ),
    (
        PLUGIN,
        "ListAndWatchResponse",
        {"devices": [{"ID": "d", "health": "Healthy", "topology": {"nodes": [{"ID": 1}]}}]},
        b"\x0a\x12\x0a\x01d\x12\x07Healthy\x1a\x04\x0a\x02\x08\x01",
    ),
    (
        PLUGIN,
        "PreferredAllocationRequest",
        {
            "container_requests": [
                {
                    "available_deviceIDs": ["a", "b"],
                    "must_include_deviceIDs": ["a"],
                    "allocation_size": 2,
                }
            ]
        },
        b"\x0a\x0b\x0a\x01a\x0a\x01b\x12\x01a\x18\x02",
    ),
    (
        PLUGIN,
        "PreferredAllocationResponse",
        {"container_responses": [{"deviceIDs": ["a"]}]},
        b"\x0a\x03\x0a\x01a",
    ),
    (
        PLUGIN,
        "AllocateRequest",
        {"container_requests": [{"devices_ids": ["a"]}]},
        b"\x0a\x03\x0a\x01a",
    ),
    (
        PLUGIN,
        "AllocateResponse",
        {
            "container_responses": [
                {
                    "envs": {"K": "V"},
                    "mounts": [{"container_path": "/c", "host_path": "/h", "read_only": True}],
                    "devices": [{"container_path": "/d", "host_path": "/e", "permissions": "rw"}],
                    "annotations": {"a": "b"},
                    "cdi_devices": [{"name": "a/b=c"}],
                }
            ]
        },
        b"\x0a\x33\x0a\x06\x0a\x01K\x12\x01V"
        b"\x12\x0a\x0a\x02/c\x12\x02/h\x18\x01"
        b"\x1a\x0c\x0a\x02/d\x12\x02/e\x1a\x02rw"
        b"\x22\x06\x0a\x01a\x12\x01b"
        b"\x2a\x07\x0a\x05a/b=c",
    ),
    (PLUGIN, "PreStartContainerRequest", {"devices_ids": ["a"]}, b"\x0a\x01a"),
    (
        plugin_registration_v1_pb2,
        "PluginInfo",
        {"type": "DRAPlugin", "name": "d", "endpoint": "/s", "supported_versions": ["v1", "v2"]},
        b"\x0a\x09DRAPlugin\x12\x01d\x1a\x02/s\x22\x02v1\x22\x02v2",
    ),
    (
        plugin_registration_v1_pb2,
        "RegistrationStatus",
        {"plugin_registered": True, "error": "e"},
        b"\x08\x01\x12\x01e",
    ),
    *(
        row
        for module in (dra_v1_pb2, dra_v1beta1_pb2)
        for row in (
            (
                module,
                "NodePrepareResourcesRequest",
                {"claims": [CLAIM]},
                b"\x0a\x0c" + CLAIM_BYTES,
            ),
            (module, "NodePrepareResourcesResponse", PREPARED, PREPARED_BYTES),
            (
                module,
                "NodeUnprepareResourcesRequest",
                {"claims": [CLAIM]},
                b"\x0a\x0c" + CLAIM_BYTES,
            ),
            (
                module,
                "NodeUnprepareResourcesResponse",
                {"claims": {"u": {"error": "no"}}},
                b"\x0a\x09\x0a\x01u\x12\x04\x0a\x02no",
            ),
        )
    ),
    (dra_v1_pb2, "Device", {"device_name": "d", "share_id": "s"}, b"\x1a\x01d\x2a\x01s"),
    (dra_health_v1_pb2, "NodeWatchResourcesResponse", HEALTH, HEALTH_BYTES),
    (dra_health_v1alpha1_pb2, "NodeWatchResourcesResponse", HEALTH, HEALTH_BYTES),
    (
        pod_resources_v1_pb2,
        "GetPodResourcesRequest",
        {"pod_name": "p", "pod_namespace": "n"},
        b"\x0a\x01p\x12\x01n",
    ),
    (
        pod_resources_v1_pb2,
        "PodResources",
        {
            "name": "p",
            "namespace": "n",
            "containers": [
                {
                    "name": "c",
                    "devices": [
                        {
                            "resource_name": "a.io/b",
                            "device_ids": ["d"],
                            "topology": {"nodes": [{"ID": 1}]},
                        }
                    ],
                    "cpu_ids": [3],
                    "memory": [{"memory_type": "m", "size": 5, "topology": {}}],
                    "dynamic_resources": [
                        {
                            "claim_name": "c",
                            "claim_namespace": "n",
                            "claim_resources": [
                                {
                                    "cdi_devices": [{"name": "x"}],
                                    "driver_name": "dr",
                                    "pool_name": "po",
                                    "device_name": "de",
                                    "share_id": "sh",
                                }
                            ],
                        }
                    ],
                }
            ],
            "cpu_ids": [7],
            "memory": [{"size": 1}],
        },
        b"\x0a\x01p\x12\x01n"
        b"\x1a\x41\x0a\x01c"
        b"\x12\x11\x0a\x06a.io/b\x12\x01d\x1a\x04\x0a\x02\x08\x01"
        b"\x1a\x01\x03"
        b"\x22\x07\x0a\x01m\x10\x05\x1a\x00"
        b"\x2a\x1d\x12\x01c\x1a\x01n\x22\x15"
        b"\x0a\x03\x0a\x01x\x12\x02dr\x1a\x02po\x22\x02de\x2a\x02sh"
        b"\x22\x01\x07"
        b"\x2a\x02\x10\x01",
    ),
    (
        pod_resources_v1_pb2,
        "GetPodResourcesResponse",
        {"pod_resources": {"name": "p"}},
        b"\x0a\x03\x0a\x01p",
    ),
    (
        pod_resources_v1_pb2,
        "ListPodResourcesResponse",
        {"pod_resources": [{"name": "p"}]},
        b"\x0a\x03\x0a\x01p",
    ),
    (
        pod_resources_v1_pb2,
        "AllocatableResourcesResponse",
        {"devices": [{"resource_name": "r"}], "cpu_ids": [1, 2], "memory": [{"size": 1}]},
        b"\x0a\x03\x0a\x01r\x12\x02\x01\x02\x1a\x02\x10\x01",
    ),
]


@pytest.mark.parametrize("full_name", METHODS)
def test_each_service_has_its_full_name_and_its_methods(full_name: str) -> None:
    module, methods = METHODS[full_name]
    service = module.DESCRIPTOR.services_by_name[full_name.rpartition(".")[2]]
    assert service.full_name == full_name
    found = (method.name + "*" * method.server_streaming for method in service.methods)
    assert " ".join(found) == methods


@pytest.mark.parametrize(
    ("module", "name", "values", "recorded"),
    RECORDED,
    ids=[f"{module.DESCRIPTOR.name}-{name}" for module, name, _, _ in RECORDED],
)
def test_each_message_is_the_recorded_bytes(
    module: ModuleType, name: str, values: dict[str, Any], recorded: bytes
) -> None:
    made: Message = getattr(module, name)(**values)
    assert made.SerializeToString(deterministic=True) == recorded
    assert type(made).FromString(recorded) == made


def test_every_message_with_fields_is_recorded() -> None:
    seen: set[str] = set()
    for module, name, values, recorded in RECORDED:
        made = getattr(module, name)(**values)
        _collect(type(made).FromString(recorded), seen)
    modules = {module for module, _ in METHODS.values()}
    for module in modules:
        for described in module.DESCRIPTOR.message_types_by_name.values():
            fields = {field.full_name for field in described.fields}
            assert fields <= seen


def _collect(message: Message, seen: set[str]) -> None:
    for field, value in message.ListFields():
        seen.add(field.full_name)
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        for inner in value.values() if is_map else value if field.is_repeated else (value,):
            if isinstance(inner, Message):
                _collect(inner, seen)
