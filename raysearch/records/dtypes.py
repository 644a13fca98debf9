"""The types of tensors that a packed file holds, by PyTorch's names and by those of safetensors."""

DTYPES = {
    "int64": "I64",
    "float64": "F64",
    "complex64": "C64",
    "float32": "F32",
    "int32": "I32",
    "bfloat16": "BF16",
    "float16": "F16",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
"""PyTorch's name → safetensors' name, in the order in which safetensors lays tensors in a file."""

STORED_DTYPES = tuple(DTYPES.values())
"""safetensors' names, in that order."""
