"""A kubelet for the tests: real sockets, and the rules of the real one."""
