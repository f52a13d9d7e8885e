"""Configurations of container runtimes, and what becomes of our handlers with each."""
