"""``python -m kata_gpu``: the same as the ``kata-gpu`` command."""

from kata_gpu.cli import main

if __name__ == "__main__":
    main()
