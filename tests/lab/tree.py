"""A topology for a person to read."""

from tests.lab.topology import Place, Topology, places


def render(topology: Topology) -> str:
    """Return the devices as an indented tree, and the IOMMU groups the kernel must make."""
    lines = [f"{topology.name}: {topology.summary}"]
    root_bus: int | None = None
    for place in places(topology):
        if place.root_bus != root_bus:
            root_bus = place.root_bus
            node = " (NUMA node 1)" if root_bus else ""
            lines.append(f"pci0000:{root_bus:02x}{node}")
        lines.append(_line(place))
    if not topology.iommu:
        lines.append("no IOMMU: no groups")
    else:
        lines += [f"group: {' + '.join(members)}" for members in groups(topology)]
    return "\n".join(lines) + "\n"


def groups(topology: Topology) -> tuple[tuple[str, ...], ...]:
    """Return the roles that share a group, for every group; empty without an IOMMU."""
    found: dict[str, list[str]] = {}
    for place in places(topology):
        if place.function is None or place.function.shown:
            found.setdefault(place.group, []).append(place.role)
    return tuple(tuple(members) for members in found.values()) if topology.iommu else ()


def _line(place: Place) -> str:
    indent = "  " * len(place.devfns)
    where = f"{indent}{place.devfns[-1]} {place.role}"
    model = place.qemu_device.split(",")[0]
    if place.function is None:
        return f"{where:30} {model}"
    driver = place.function.model.driver or "no driver"
    absent = "" if place.function.shown else ", not plugged in"
    return f"{where:30} {place.function.seen_as} ({model}, {driver}{absent})"
