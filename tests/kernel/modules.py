"""The modules of a fake host: which there are, what drivers they hold, what is loaded."""

from collections.abc import Iterable, Mapping
from typing import Final

from tests.kernel.bus import Bus
from tests.kernel.specs import DriverSpec
from tests.kernel.tree import Tree

_VFIO: Final = ("vfio", "vfio_iommu_type1")


class Modules:
    """What modprobe knows, and can do."""

    def __init__(
        self, tree: Tree, bus: Bus, release: str, vfio: Mapping[str, Mapping[str, bool]]
    ) -> None:
        self._tree = tree
        self._bus = bus
        self._folder: Final = f"lib/modules/{release}"
        self._vfio_parameters = vfio
        self._drivers: dict[str, list[DriverSpec]] = {name: [] for name in _VFIO}
        self._broken: dict[str, str] = {}
        tree.text(f"{self._folder}/modules.alias", "# Aliases of modules\n")

    def add(self, spec: DriverSpec) -> None:
        """Put a driver into its module."""
        self.add_module(spec.module, spec.aliases)
        self._drivers[spec.module].append(spec)

    def add_module(self, module: str, aliases: Iterable[str], *, error: str | None = None) -> None:
        """Install a module, so far without drivers; with an *error* it cannot be loaded."""
        self._drivers.setdefault(module, [])
        if error is not None:
            self._broken[module] = error
        with (self._tree.root / self._folder / "modules.alias").open("a") as file:
            file.writelines(f"alias {alias} {module}\n" for alias in aliases)

    def load(self, name: str) -> str | None:
        """Load a module and register its drivers; return what modprobe says against it."""
        drivers = self._drivers.get(module_name(name))
        if drivers is None:
            return f"modprobe: FATAL: Module {name} not found in directory /{self._folder}"
        if module_name(name) in self._broken:
            return f"modprobe: ERROR: could not insert '{name}': {self._broken[module_name(name)]}"
        self._tree.add_module(module_name(name), {})
        for spec in drivers:
            if spec.name not in self._bus.drivers:
                self.register(spec)
        return None

    def unload(self, name: str) -> None:
        """Unload a module; its drivers let go of everything."""
        for spec in self._drivers[module_name(name)]:
            self._bus.unregister(spec.name)

    def register(self, spec: DriverSpec) -> None:
        """Register one driver, with its module."""
        if spec.vfio:
            self.load_vfio()
        self._tree.add_module(spec.module, {})
        self._bus.register(spec)

    def load_vfio(self) -> None:
        """Load what every VFIO driver rests on."""
        for module, parameters in self._vfio_parameters.items():
            self._tree.add_module(module, {n: "Y" if v else "N" for n, v in parameters.items()})


def module_name(name: str) -> str:
    """Return the one of a module's two spellings that the kernel uses."""
    return name.replace("-", "_")
