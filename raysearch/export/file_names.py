"""Names of the files in a model folder that more than one part of the export reads or writes."""

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
ARCHITECTURE = "architecture.pt2"
FILES = (WEIGHTS, CONFIG, ARCHITECTURE)
"""Those of the packed target."""
MANIFEST = "manifest.json"
