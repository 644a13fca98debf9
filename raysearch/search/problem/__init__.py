"""The search as integers: options, costs, limits and surrogates."""
