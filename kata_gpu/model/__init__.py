"""What the agent knows and wants: frozen values of the standard library, no I/O."""
