"""Why a container runtime would not start, or not as its admin means it.

Source: containerd 2.3, LoadConfigWithPlugins, which refuses a drop-in of a higher version; k0s,
whose worker refuses one of any other version than its own.
"""

from collections.abc import Iterable

from kata_gpu.model.blueprint import RuntimeKind
from kata_gpu.model.runtime import ContainerRuntime
from kata_gpu.plan.runtime import handlers


def faults(runtime: ContainerRuntime) -> Iterable[str]:
    """Yield what is wrong with its files, one by one."""
    main = handlers.config_version(runtime)
    for file in runtime.files:
        if file.problem is not None:
            yield f"{runtime.kind} does not start with {file.path}: {file.problem}"
            continue
        version = handlers.version_of(file)
        if runtime.kind is RuntimeKind.CRIO or None in {main, version} or version == main:
            continue
        versions = f"{file.path} is of version {version} and {runtime.place.main} of version {main}"
        if runtime.is_managed:
            yield f"{versions}: k0s does not start with it"
        elif version is not None and main is not None and version > main:
            yield f"{versions}: containerd 2.3 does not start with it, older ones lose settings"
