"""Run a command the lab needs: an argument list, a built environment, no stdin, a deadline."""

import os
import subprocess
from collections.abc import Mapping
from typing import Final

from tests.lab.errors import LabError

ENVIRONMENT: Final[Mapping[str, str]] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": os.environ.get("HOME", "/"),
    "DEBIAN_FRONTEND": "noninteractive",
    # apt reaches its mirrors as the user's shell would
    **{name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")},
}


def output(argv: tuple[str, ...], *, timeout_s: float, cwd: str | None = None) -> str:
    """Return what the command prints; raise LabError with its last words if it fails."""
    try:
        result = subprocess.run(
            argv,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            cwd=cwd,
            check=False,
        )
    except FileNotFoundError as error:
        raise LabError(f"cannot run {argv[0]}: it is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"cannot run {' '.join(argv)}: not done after {timeout_s:g} s") from error
    if result.returncode != 0:
        last = "\n".join((result.stderr or result.stdout).strip().splitlines()[-8:])
        raise LabError(f"cannot run {' '.join(argv)}: status {result.returncode}: {last}")
    return result.stdout
