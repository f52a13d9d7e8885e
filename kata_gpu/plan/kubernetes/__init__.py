"""What Kubernetes is told of this node, and what is advised to it. Pure."""
