"""Optuna samplers that propose assignments within limits."""
