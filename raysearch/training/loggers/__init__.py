"""Where the curves of training go: one small protocol, and what speaks it, one logger a file."""

from raysearch.training.loggers.make import check_loggers, logged
from raysearch.training.loggers.protocol import TrainingLogger

__all__ = ["TrainingLogger", "check_loggers", "logged"]
