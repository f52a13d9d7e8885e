"""Situations of a device, each with the explanation that was reviewed, as text."""
