"""GGUF files: blocks of codes, tensors and metadata of a language model, and what runs them."""
