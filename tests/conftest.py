"""What all tests share: the lab's plugin, which runs `lab` tests in a VM."""

pytest_plugins = ["tests.lab.plugin"]
