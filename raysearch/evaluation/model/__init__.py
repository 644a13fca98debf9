"""A model of raysearch's own, made of the user's, and what running it leaves on it."""
