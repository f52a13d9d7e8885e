"""What Kubernetes is told of this node, as plain documents. Pure."""
