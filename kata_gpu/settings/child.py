"""What `reading` has another process do: read the files of an admin, and tell the agent."""

import sys
from pathlib import Path

from kata_gpu.host import apart
from kata_gpu.settings.files import Files
from kata_gpu.settings.reading import answers


def main() -> None:
    """Read what the arguments name: the root, the settings and the blueprint, or "" for each."""
    root, *named = (Path(word) if word else None for word in sys.argv[1:])
    files = Files(root=root or Path("/"), named_settings=named[0], named_blueprint=named[1])
    for answer in answers(files):
        apart.say(answer)
