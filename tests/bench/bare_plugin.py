"""A device plugin with nothing to it: what Python and grpc.aio cost by themselves.

It is here to be measured beside the agent in the same run, and checks nothing of what it gives.
Arguments: the node's root, kubelet's directory, and the resource.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from kata_gpu.publish.kubelet.protos import device_plugin_v1beta1_pb2 as pb


def _gpus(root: str) -> list[str]:
    """Return the groups of the functions that are GPUs: each function's class, and what matters."""
    return sorted(
        (device / "iommu_group").readlink().name
        for device in (Path(root) / "sys/bus/pci/devices").iterdir()
        if (device / "class").read_bytes().startswith(b"0x03")
    )


async def _options(_request: pb.Empty, _context: Any) -> pb.DevicePluginOptions:
    return pb.DevicePluginOptions()


def _answers(groups: list[str]) -> Any:
    async def listing(_request: pb.Empty, _context: Any) -> AsyncIterator[pb.ListAndWatchResponse]:
        devices = [pb.Device(ID=group, health="Healthy") for group in groups]
        yield pb.ListAndWatchResponse(devices=devices)
        await asyncio.Event().wait()

    async def allocate(request: pb.AllocateRequest, _context: Any) -> pb.AllocateResponse:
        def node(path: str) -> pb.DeviceSpec:
            return pb.DeviceSpec(container_path=path, host_path=path, permissions="rwm")

        return pb.AllocateResponse(
            container_responses=[
                pb.ContainerAllocateResponse(
                    devices=[node("/dev/vfio/vfio"), *(node(f"/dev/vfio/{g}") for g in ids)]
                )
                for ids in (wish.devices_ids for wish in request.container_requests)
            ]
        )

    methods = {
        "GetDevicePluginOptions": grpc.unary_unary_rpc_method_handler(
            _options, pb.Empty.FromString, pb.DevicePluginOptions.SerializeToString
        ),
        "ListAndWatch": grpc.unary_stream_rpc_method_handler(
            listing, pb.Empty.FromString, pb.ListAndWatchResponse.SerializeToString
        ),
        "Allocate": grpc.unary_unary_rpc_method_handler(
            allocate, pb.AllocateRequest.FromString, pb.AllocateResponse.SerializeToString
        ),
    }
    return grpc.method_handlers_generic_handler("v1beta1.DevicePlugin", methods)


async def _main(root: str, kubelet: str, resource: str) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_answers(_gpus(root)),))
    server.add_insecure_port(f"unix:{kubelet}/device-plugins/bare.sock")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{kubelet}/device-plugins/kubelet.sock") as channel:
        register = channel.unary_unary(
            "/v1beta1.Registration/Register",
            pb.RegisterRequest.SerializeToString,
            pb.Empty.FromString,
        )
        await register(
            pb.RegisterRequest(version="v1beta1", endpoint="bare.sock", resource_name=resource)
        )
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
