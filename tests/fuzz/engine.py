"""One target under atheris: ``python -m tests.fuzz.engine TARGET LIBFUZZER-ARGS...``."""

import shutil
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["kata_gpu", "h11", "tomllib", "http.client"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    name, *options = sys.argv[1:]
    target = TARGETS[name]
    folder = Path(tempfile.mkdtemp(prefix="kg.", dir="/dev/shm"))
    try:
        again = f"{sys.executable} -m tests.fuzz.engine {name}"  # a merge starts it with a shell
        atheris.Setup([again, *options], lambda data: target(data, folder))
        atheris.Fuzz()
    finally:
        shutil.rmtree(folder)


main()
