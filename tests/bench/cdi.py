"""``kata-gpu cdi validate`` and ``list`` on a node with many CDI files.

Half of the files are JSON as the agent writes them, half YAML as NVIDIA's toolkit does: eight
GPUs with their device nodes, and hooks and mounts for all.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import yaml

from tests import memory
from tests.bench import timing

_FILES: Final = 50
_DEVICES: Final = 8
_MOUNTS: Final = 40
_ROUNDS: Final = 15
_TARGET_MS: Final = 300


def main() -> None:
    """Print the median of each verb, the interpreter's start beside it."""
    command = [sys.executable, "-c", "from kata_gpu.cli import main; main()"]
    with tempfile.TemporaryDirectory(prefix="kata-gpu-bench-", dir=memory.folder()) as folder:
        root = Path(folder)
        size = _build(root)
        commands = {
            "(interpreter)": [sys.executable, "-c", "pass"],
            "cdi validate": [*command, "cdi", "validate", "--root", str(root)],
            "cdi list": [*command, "cdi", "list", "--root", str(root)],
        }
        times = timing.in_turn(commands, rounds=_ROUNDS)
    print(f"{_FILES} files, {size // 1024} KiB, {_FILES * _DEVICES} devices")
    for name, times_s in times.items():
        print(f"{name:15} {timing.median_ms(times_s):7.1f} ms")
    print(f"target: cdi validate below {_TARGET_MS} ms")


def _build(root: Path) -> int:
    (root / "dev/vfio").mkdir(parents=True)
    size = 0
    for number in range(_FILES):
        folder = root / ("etc/cdi" if number % 2 else "var/run/cdi")
        folder.mkdir(parents=True, exist_ok=True)
        is_yaml = bool(number % 2)
        spec = _spec(root, number, with_mounts=is_yaml)
        text = yaml.safe_dump(spec, sort_keys=False) if is_yaml else json.dumps(spec, indent=2)
        (folder / f"{number}.{'yaml' if is_yaml else 'json'}").write_text(text)
        size += len(text)
    return size


def _spec(root: Path, number: int, *, with_mounts: bool) -> dict[str, Any]:
    devices = []
    for device in range(_DEVICES):
        path = f"/dev/vfio/{number * _DEVICES + device}"
        (root / path.removeprefix("/")).symlink_to("/dev/null")
        edits = {"deviceNodes": [{"path": path, "hostPath": path}]}
        devices.append({"name": f"0000:{number:02x}:{device:02x}.0", "containerEdits": edits})
    found: dict[str, Any] = {
        "cdiVersion": "0.5.0",
        "kind": f"vendor{number}.com/pgpu",
        "devices": devices,
    }
    if with_mounts:
        mounts = [
            {"hostPath": f"/lib/{n}.so", "containerPath": f"/lib/{n}.so", "options": ["ro", "bind"]}
            for n in range(_MOUNTS)
        ]
        found["containerEdits"] = {"env": ["A=b"], "mounts": mounts}
    return found
