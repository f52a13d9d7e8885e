"""All CDI files of the node, whoever wrote them. They are read and never changed."""

from kata_gpu.discover.cdi.parsing import parse
from kata_gpu.discover.cdi.reading import DIRECTORIES, read, read_files

__all__ = ["DIRECTORIES", "parse", "read", "read_files"]
