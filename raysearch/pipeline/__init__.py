"""The order of the stages, and what surrounds them: checks of the inputs, pools, progress, the result."""
