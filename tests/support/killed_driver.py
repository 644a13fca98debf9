"""A driver of training that its worker kills; run as a module with the address of a Ray and a folder."""

from __future__ import annotations

import logging
import os
import sys

import ray

from raysearch.artifacts import Storage
from raysearch.cluster.by_value import register_by_value
from raysearch.training import fine_tune
from tests.support import training_recipes
from tests.support.training_recipes import Deadly, make_recipe


def main() -> None:
    address, folder = sys.argv[1:]
    register_by_value(training_recipes)
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    recipe = make_recipe(epochs=2, checkpoint_steps=4, forward=Deadly(folder, os.getpid()))
    fine_tune(recipe, lambda name, data: None, on_ray=True, storage=Storage(folder))


if __name__ == "__main__":
    main()
