"""Where work runs: pools of workers, Ray sessions and Ray jobs; `pool` alone needs no Ray."""
