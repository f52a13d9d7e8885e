"""What the container runtime is told of our handlers, and what it makes of all it is told."""
