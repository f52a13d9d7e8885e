"""The blueprints of the scenarios, as TOML tables to put together."""

from typing import Final


def blueprint(*tables: str) -> str:
    """Return the text of a blueprint file with these tables, in order."""
    return "\n".join(('schema = 1\nversion = "test"', *tables))


GPUS: Final = """
[[pool]]
name = "gpus"
mode = "passthrough"
resource = "nvidia.com/pgpu"
select = [{ vendor = "10de" }]
"""

AT_MOST_TWO: Final = """
[[pool]]
name = "gpus"
mode = "passthrough"
resource = "nvidia.com/pgpu"
max_units = 2
select = [{ vendor = "10de" }]
"""

ONE_PAIR: Final = AT_MOST_TWO.replace("max_units = 2", "max_units = 1")

AT_LEAST_THREE: Final = """
[[pool]]
name = "gpus"
mode = "passthrough"
resource = "nvidia.com/pgpu"
min_units = 3
select = [{ vendor = "10de" }]
"""

SWITCHES: Final = """
[[pool]]
name = "switches"
mode = "passthrough"
resource = "nvidia.com/nvswitch"
select = [{ vendor = "10de", class = "0680" }]
"""

REST_TO_HOST: Final = """
[[pool]]
name = "rest"
mode = "host"
select = [{ class = "03" }]
"""


def passthrough(name: str, *addresses: str, resource: str = "nvidia.com/pgpu") -> str:
    """Return a pool that passes these functions through."""
    return _by_address(name, "passthrough", addresses) + f'resource = "{resource}"\n'


def ignore(name: str, *addresses: str) -> str:
    """Return a pool that leaves these functions alone."""
    return _by_address(name, "ignore", addresses)


def host(name: str, *addresses: str) -> str:
    """Return a pool that keeps these functions on their host drivers."""
    return _by_address(name, "host", addresses)


def handler(name: str, runtime: str, config: str) -> str:
    """Return a Kata handler."""
    return f'\n[[kata.handler]]\nname = "{name}"\nruntime = "{runtime}"\nconfig = "{config}"\n'


def _by_address(name: str, mode: str, addresses: tuple[str, ...]) -> str:
    selectors = ", ".join(f'{{ address = "{address}" }}' for address in addresses)
    return f'\n[[pool]]\nname = "{name}"\nmode = "{mode}"\nselect = [{selectors}]\n'
