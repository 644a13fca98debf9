"""What the benchmarks are run on: published problems, random ones of a known form, damaged files."""
