"""A kubelet for tests: it serves and asks as the real one does, and refuses what that refuses."""
