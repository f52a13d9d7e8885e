"""The protocols that kubelet speaks over Unix sockets, and Kata through it."""
