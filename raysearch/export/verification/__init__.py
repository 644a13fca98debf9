"""Files held against the stripped module."""
