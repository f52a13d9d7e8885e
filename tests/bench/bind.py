"""Eight GPUs from their host driver to VFIO: ``kata-gpu run`` against Debian's driverctl.

Both are met in one guest, in turn, as an admin starts them: ours from the start of the
process until all are bound, verified and in the CDI spec; driverctl as eight commands, which
bind, look at the driver's link and save the override. The guest is emulated, so that whatever
is computed is slow, and an emulated GPU's driver lets go at once, which a real one does not.
"""

import tempfile
from pathlib import Path
from typing import Final

from tests.bench import lab
from tests.lab import process, setup

_TIMEOUT_S: Final = 900.0


def main() -> None:
    """Print each round's figures, medians and the ratio."""
    lab.run("eight", "-m", "tests.bench.bind_in_guest", str(_driverctl()), timeout_s=_TIMEOUT_S)


def _driverctl() -> Path:
    """Return Debian's script, unpacked into the lab's cache and not installed."""
    folder = setup.cache() / "driverctl"
    script = folder / "usr/sbin/driverctl"
    if not script.exists():
        with tempfile.TemporaryDirectory() as downloads:
            options = ("-o", "APT::Sandbox::User=root", "-q")
            argv = ("apt-get", *options, "download", "driverctl")
            process.output(argv, timeout_s=300, cwd=downloads)
            (archive,) = Path(downloads).glob("*.deb")
            process.output(("dpkg-deb", "-x", str(archive), str(folder)), timeout_s=60)
    return script
