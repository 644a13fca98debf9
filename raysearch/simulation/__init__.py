"""A worker's fake-quantized model, with what it keeps between measurements."""
