"""All CDI files of the node, whoever wrote them. They are read and never changed."""

from kata_gpu.discover.cdi.parsing import parse
from kata_gpu.discover.cdi.reading import read, read_files

__all__ = ["parse", "read", "read_files"]
