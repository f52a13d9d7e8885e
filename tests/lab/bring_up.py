"""The first job of every guest: each device on its host driver, before a test looks."""

from typing import Final

from tests.lab.topology import Function, Topology, places

# builtins only: a program costs 0.1 s under emulation
_AWAIT: Final = """\
await() {
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        for device in /sys/devices/$2; do
            [ "$device/driver" -ef "/sys/bus/pci/drivers/$1" ] && return
        done
        sleep 0.5
    done
    echo "$3 is not held by $1; its place:"
    ls -ld /sys/devices/$2/driver
    exit 1
}
"""


def script(topology: Topology) -> str:
    """Return the script; it fails with a device that its driver does not take."""
    shown = [
        (place, place.function)
        for place in places(topology)
        if place.function is not None and place.function.shown
    ]
    functions = [function for _, function in shown]
    modules = sorted({function.model.module for function in functions if function.model.module})
    lines = [f"modprobe -a {' '.join(modules)} || exit 1"] if modules else []
    lines += sorted({line for function in functions for line in _new_id(function)})
    lines.append(_AWAIT)
    for place, function in shown:
        if function.model.driver is not None:
            lines.append(f"await {function.model.driver} '{place.sysfs_glob}' {place.role}")
    return "\n".join(lines)


def _new_id(function: Function) -> list[str]:
    """Teach the driver the identity, where it goes by vendor and device."""
    identity, driver = function.identity, function.model.driver
    if identity is None or driver != "bochs-drm":
        return []  # snd_hda_intel knows the audio functions of GPUs by their class
    path = f"/sys/bus/pci/drivers/{driver}/new_id"
    return [f"echo {identity.vendor:04x} {identity.device:04x} >{path}"]
