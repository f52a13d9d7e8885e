"""What admins write, parsed at the door: nothing unparsed goes past this room."""
