"""Run the fuzzer on each target, in a process of its own: see scripts/fuzz."""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.fuzz.targets import TARGETS

_CORPUS: Final = Path(__file__).with_name("corpus")
_FOUND: Final = Path("build/fuzz")
_TOKENS: Final = Path(__file__).with_name("tokens.dict")
_LIMITS: Final = ("-max_len=8192", "-timeout=5", "-rss_limit_mb=1024", f"-dict={_TOKENS}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/fuzz")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=120, help="for each target (120)")
    parser.add_argument("--keep", action="store_true", help="only add finds to the corpus")
    options = parser.parse_args()
    if strangers := set(options.targets) - set(TARGETS):
        parser.error(f"cannot fuzz {', '.join(strangers)}: there is {', '.join(TARGETS)}")
    for name in options.targets or TARGETS:
        found = _FOUND / name
        found.mkdir(parents=True, exist_ok=True)
        if options.keep:
            status = _engine(name, "-set_cover_merge=1", str(_CORPUS / name), str(found))
        else:
            seconds = f"-max_total_time={options.seconds}"
            artifacts = f"-artifact_prefix={found}/"
            status = _engine(name, seconds, artifacts, str(found), str(_CORPUS / name))
        if status:
            sys.exit(f"scripts/fuzz: {name} found something, or could not run: status {status}")


def _engine(name: str, *options: str) -> int:
    with tempfile.TemporaryDirectory(prefix="kg.", dir="/dev/shm") as folder:
        argv = (sys.executable, "-m", "tests.fuzz.engine", name, folder, *_LIMITS, *options)
        print("scripts/fuzz:", *argv, file=sys.stderr)
        return subprocess.run(argv, check=False).returncode


main()
