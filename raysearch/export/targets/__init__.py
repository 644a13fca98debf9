"""The formats that a stripped model is written in, one a file."""
