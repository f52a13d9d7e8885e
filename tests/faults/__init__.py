"""Let real system calls of a real process fail, be cut short, or be its last one."""
