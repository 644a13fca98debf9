"""Directories that `from_pretrained` of transformers reads, written from a stripped module."""
