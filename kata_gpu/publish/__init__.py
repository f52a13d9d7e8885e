"""What leaves the node: kubelet's protocols, and the API server's."""
