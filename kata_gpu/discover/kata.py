"""Find where a Kata handler's configuration really lies.

Kata looks for ``config.d`` beside the real file behind links (kata-deploy puts links at
the paths it documents), so the blueprint's path is only where the search begins.
"""

from kata_gpu.errors import HostError
from kata_gpu.host import Host, files
from kata_gpu.model.inventory import KataBase


def find(host: Host, handler: str, config: str) -> KataBase:
    """Return where the drop-ins of a handler with that base file belong, or why nowhere."""
    directory, reason = None, None
    try:
        real = files.resolve(config, root=host.root)
        if real is None:
            reason = f"{config} does not exist"
        elif not host.path(real).is_file():
            reason = f"{config} is not a file"
        else:
            directory = real.rpartition("/")[0] or "/"
    except HostError as error:
        reason = str(error)
    return KataBase(handler=handler, config=config, directory=directory, reason=reason)
