"""Kata's configuration: what each runtime makes of its files, and the drop-in that is ours."""
