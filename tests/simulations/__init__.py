"""Scenarios that are simulated, each beside the text that was reviewed."""
