"""CDI files, good and bad, with what each of the runtimes makes of them."""
