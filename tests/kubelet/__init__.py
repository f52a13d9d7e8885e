"""Kubelets for tests: over real sockets they do what kubelet does, and refuse what it refuses."""
