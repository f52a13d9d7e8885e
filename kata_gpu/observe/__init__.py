"""Let people and programs see the node's state: documents, the status socket, its client."""
