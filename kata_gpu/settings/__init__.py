"""What admins write, parsed at the door: nothing unparsed goes past this room."""

import os

# pydantic would look through every installed package for plugins and import what it finds:
# not in a process that runs as root, and not for the time it takes.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
