"""What the API server is told of this node: ResourceSlices, labels and events."""
