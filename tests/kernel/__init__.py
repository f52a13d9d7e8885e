"""The kernel that fast tests run on, and the contract that it shares with the real one."""
