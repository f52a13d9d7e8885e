"""``python -m kata_gpu.settings ROOT SETTINGS BLUEPRINT``: read for the agent, and tell it."""

import gc
import sys
from pathlib import Path

from kata_gpu.host import apart
from kata_gpu.settings.files import Files
from kata_gpu.settings.reading import read

if __name__ == "__main__":
    gc.disable()
    root, *named = (Path(word) if word else None for word in sys.argv[1:])
    apart.say(
        read(Files(root=root or Path("/"), named_settings=named[0], named_blueprint=named[1]))
    )
