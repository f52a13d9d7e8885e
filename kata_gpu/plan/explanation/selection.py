"""Why a pool does not select a function: the first condition of each selector that it misses."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from kata_gpu.model.blueprint import Pool, Selector
from kata_gpu.model.pci import PciFunction
from kata_gpu.model.plan import virtual_functions


def missed(pool: Pool, function: PciFunction) -> str:
    """Return why *pool* may not have *function*: it misses a condition, or found no room."""
    if function.is_bridge:
        return f"pool {pool.name} selects no bridge, as no pool does"
    reasons = [first_miss(selector, function) for selector in pool.selectors]
    if None in reasons:
        if pool.virtual_functions is not None and function.parent is None:
            count = virtual_functions(pool.virtual_functions)
            return f"pool {pool.name} asks for {count} of it, which are its units"
        limit = "" if pool.max_units is None else f", but may have {pool.max_units} units only"
        return f"pool {pool.name} selects it{limit}"
    return f"pool {pool.name} does not select it: {'; '.join(filter(None, reasons))}"


def first_miss(selector: Selector, function: PciFunction) -> str | None:
    """Return the first condition that *function* misses; None when it meets all of them."""
    return next((reason for is_met, reason in _conditions(selector, function) if not is_met), None)


def _conditions(selector: Selector, function: PciFunction) -> Iterable[tuple[bool, str]]:
    """Yield each condition as `Selector.matches` has it: whether it is met, and what if not."""
    identity = function.identity
    yield (
        selector.vendor in {None, identity.vendor},
        f"its vendor is {identity.vendor:04x}, not {_hex(selector.vendor)}",
    )
    yield (
        selector.device in {None, identity.device},
        f"its device id is {identity.device:04x}, not {_hex(selector.device)}",
    )
    yield (
        selector.address in {None, identity.address},
        f"its address is not {selector.address}",
    )
    prefix = selector.class_prefix
    yield (
        prefix is None or identity.class_hex.startswith(prefix),
        f"its class is {identity.class_hex}, which does not begin with {prefix}",
    )
    yield (
        (selector.device, prefix, selector.address) != (None, None, None) or identity.is_gpu,
        "it is no GPU, and a selector without device, class or address is about GPUs only",
    )
    yield (
        selector.numa_node in {None, function.numa_node},
        f"its NUMA node is {_known(function.numa_node)}, not {selector.numa_node}",
    )
    yield (
        selector.product is None or fnmatchcase(function.product_name or "", selector.product),
        f"its product name is {_known(function.product_name)}, which is not like "
        f"{selector.product}",
    )


def _hex(number: int | None) -> str:
    return "any" if number is None else f"{number:04x}"


def _known(value: object) -> str:
    return "unknown" if value is None else str(value)
