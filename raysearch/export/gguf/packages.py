"""The packages that write and run GGUF files."""

from __future__ import annotations

from raysearch.export.extras import Extra

GGUF = Extra("gguf", ("gguf", "xllamacpp"))
