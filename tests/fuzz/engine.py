"""One target under atheris: ``python -m tests.fuzz.engine TARGET FOLDER LIBFUZZER-ARGS...``."""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["kata_gpu", "h11", "tomllib", "http.client"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    name, folder, *options = sys.argv[1:]
    target = TARGETS[name]
    again = f"{sys.executable} -m tests.fuzz.engine {name} {folder}"  # a merge starts it anew
    atheris.Setup([again, *options], lambda data: target(data, Path(folder)))
    atheris.Fuzz()  # it ends the process


main()
