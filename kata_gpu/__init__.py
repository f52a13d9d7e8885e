"""Give whole GPUs of a node to Kata Containers pod VMs, and give them back."""

__version__ = "0.4.0"
