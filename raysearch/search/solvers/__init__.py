"""Assignments within limits: exact, heuristic and bounding."""
