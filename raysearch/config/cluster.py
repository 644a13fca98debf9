"""The fleet."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from raysearch.config.section import Section


class ClusterConfig(Section):
    """The fleet. Only `threads`, `device` and `deterministic` can change a result: its rounding.

    Attributes:
        workers: Ray actors that are asked for, of which a run begins with the first that the cluster has
            room for; 0 computes in this process without Ray. "auto" is one on a cluster; elsewhere
            this process, or as many actors as the machine takes where the work is worth their start.
        min_workers: actors that are kept while they have nothing to do; others are given back to a cluster
            after half a minute.
        max_workers: actors that are taken where the cluster has room, though only `workers` were asked for;
            None: no more than those.
        cpus_per_worker: CPUs an actor reserves.
        gpus_per_worker: GPUs, or the fraction of one, that an actor reserves; None: see `num_gpus`.
        threads: torch and BLAS threads of a worker.
        device: where a worker computes; "auto" takes GPUs where the cluster, or this machine, has any.
        deterministic: whether an operation without a deterministic implementation is refused.
        cache_bytes: what a worker may keep between forwards; None: 1 GiB, and of a language model a quarter
            of its weights at most.
        replica: what a worker holds of the float model: "whole", or "block", one block at a time, which it
            reads from the run's storage with the hidden states that enter it. For weights alone; the results
            are the same. This process holds the whole model in any case.
        unit_timeout_seconds: after which a unit counts as hung, and is given to another worker.
        startup_timeout_seconds: after which a worker that has its CPUs and is not ready is replaced, and a
            cluster that can never hold one is an error.
    """

    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    min_workers: int = Field(0, ge=0)
    max_workers: int | None = Field(None, ge=1)
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float | None = Field(None, ge=0)
    threads: int = Field(1, ge=1)
    device: Literal["cpu", "cuda", "auto"] = "auto"
    deterministic: bool = True
    cache_bytes: int | None = Field(None, ge=0)
    replica: Literal["whole", "block"] = "whole"
    unit_timeout_seconds: float = Field(600.0, gt=0)
    startup_timeout_seconds: float = Field(300.0, gt=0)

    @field_validator("workers", mode="before")
    @classmethod
    def _is_a_count_or_auto(cls, value: Any) -> Any:
        # Said once: pydantic would complain of a number, and of a word.
        if value == "auto" or (type(value) is int and value >= 0):
            return value
        raise ValueError("give the number of actors, 0 for this process, or 'auto'")

    @model_validator(mode="after")
    def _check_numbers(self) -> ClusterConfig:
        limits = [self.min_workers, self.workers, self.max_workers]
        numbers = [limit for limit in limits if isinstance(limit, int)]
        # Without Ray there is no fleet that could grow or shrink.
        if self.workers and numbers != sorted(numbers):
            raise ValueError(
                f"cluster.min_workers is {self.min_workers}, cluster.workers {self.workers} and "
                f"cluster.max_workers {self.max_workers}; they must be in this order"
            )
        return self

    @model_validator(mode="after")
    def _check_gpus(self) -> ClusterConfig:
        if self.device == "cuda" and self.gpus_per_worker == 0:
            raise ValueError(
                "cluster.device is 'cuda', but cluster.gpus_per_worker is 0; give 1, or the fraction of a "
                "GPU that each worker gets"
            )
        if self.device == "cpu" and self.gpus_per_worker:
            raise ValueError(
                "cluster.gpus_per_worker is set, but cluster.device is 'cpu', so the GPUs would be reserved "
                "and idle; set cluster.device to 'cuda' or 'auto'"
            )
        return self

    @property
    def num_workers(self) -> int:
        """Actors of a pool; one where nobody has counted yet.

        Example:
            >>> ClusterConfig().num_workers, ClusterConfig(workers=3).num_workers
            (1, 3)
        """
        return 1 if self.workers == "auto" else self.workers

    def settled(self, has_gpus: bool) -> ClusterConfig:
        """With the device in force in place of "auto"; without GPUs none is reserved.

        Args:
            has_gpus: whether there is a GPU where the workers will be.

        Example:
            >>> ClusterConfig().settled(True).device, ClusterConfig().settled(False).device
            ('cuda', 'cpu')
        """
        if self.device != "auto":
            return self
        if has_gpus and self.gpus_per_worker != 0:
            return self.model_copy(update={"device": "cuda"})
        return self.model_copy(update={"device": "cpu", "gpus_per_worker": None})

    def num_gpus(self, cluster_has_gpus: bool) -> float:
        """GPUs that an actor asks for: as set, else one where it will compute on one.

        Example:
            >>> ClusterConfig().num_gpus(True), ClusterConfig(device="cpu").num_gpus(True)
            (1.0, 0.0)
        """
        settled = self.settled(cluster_has_gpus)
        if settled.gpus_per_worker is not None:
            return settled.gpus_per_worker
        return 1.0 if settled.device == "cuda" else 0.0
