"""Look at the host once and say what is there."""
