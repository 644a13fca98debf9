"""Time of files and of their layers on this machine."""
