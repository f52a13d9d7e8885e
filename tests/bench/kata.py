"""``kata-gpu kata`` and ``doctor`` on a node with 30 handlers, 8 of them in the blueprint.

Each handler has a base file as long as Kata's own, with its comments, and those in the blueprint
have two drop-ins; the others' folders are empty, as kata-deploy leaves them. Wall times are those
of whole processes; the processor's time beside them is what is left of them on a machine that does
nothing else.
"""

import resource
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests import memory
from tests.bench import timing
from tests.fit_node import dress
from tests.kernel import nodes
from tests.test_kata_corpus import CORPUS, make_files

_HANDLERS: Final = 30
_CONFIGURED: Final = 8
_ROUNDS: Final = 11
_TARGET_MS: Final = 300
_COMMENT: Final = "# A line of comment such as Kata's templates have above each of their values.\n"
_BASES: Final = (
    ("go", "runtimes", "qemu-nvidia-gpu"),
    ("go", "runtimes", "qemu-nvidia-gpu-snp"),
    ("rust", "runtime-rs/runtimes", "qemu-nvidia-gpu-runtime-rs"),
)
_KATA: Final = "opt/kata/share/defaults/kata-containers"


def main() -> None:
    """Print the medians of each verb as a whole process, in milliseconds."""
    with tempfile.TemporaryDirectory(prefix="kata-gpu-bench-", dir=memory.folder()) as folder:
        root = dress(nodes.single_gpu(Path(folder)))
        _build(root)
        start = [sys.executable, "-c", "from kata_gpu.cli import main; main()"]
        where = ["--root", str(root)]
        commands = {
            "(interpreter)": [sys.executable, "-c", "pass"],
            "kata show": [*start, "kata", "show", "kata-shim-0", *where],
            "kata show --origin": [*start, "kata", "show", "kata-shim-0", "--origin", *where],
            "kata list": [*start, "kata", "list", *where],
            "doctor": ["sh", "-c", '"$0" "$@" || test $? = 3', *start, "doctor", *where],
        }
        times = {name: [_run(argv) for _ in range(_ROUNDS)] for name, argv in commands.items()}
    for name, pairs in times.items():
        wall, processor = (statistics.median(column) * 1000 for column in zip(*pairs, strict=True))
        print(f"{name:20} {wall:7.1f} ms, of the processor {processor:7.1f} ms")
    print(f"target: at most {_TARGET_MS} ms for kata show and doctor at {_HANDLERS} handlers")


def _run(argv: list[str]) -> tuple[float, float]:
    """Return how long a process takes, and how long it has a processor, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall_s = timing.run_s(argv)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _build(root: Path) -> None:
    tables = ['schema = 1\nversion = "bench"\n']
    for number in range(_HANDLERS):
        runtime, folder, base = _BASES[number % len(_BASES)]
        shim = f"shim-{number}"
        path = root / _KATA / folder / shim / f"configuration-{shim}.toml"
        (path.parent / "config.d").mkdir(parents=True)
        path.write_text(_with_comments((CORPUS / "bases" / f"{base}.toml").read_text(), shim))
        make_files(root, path.read_text())
        drop_ins = ("30-kernel-params.toml", "60-kata-gpu.toml")
        for name in drop_ins if number < _CONFIGURED else ():
            (path.parent / "config.d" / name).write_text("[runtime]\nenable_debug = true\n")
        if number < _CONFIGURED:
            tables.append(
                f'[[kata.handler]]\nname = "kata-{shim}"\nruntime = "{runtime}"\n'
                f'config = "/{path.relative_to(root)}"\n'
            )
    blueprint = root / "etc/kata-gpu/blueprint.toml"
    blueprint.parent.mkdir(parents=True, exist_ok=True)
    blueprint.write_text("\n".join(tables))


def _with_comments(text: str, shim: str) -> str:
    """Return a base file with three lines of comment above each value, about 33 KiB in all."""
    return f"# {shim}\n" + "".join(f"{_COMMENT * 3}{line}\n" for line in text.splitlines())
