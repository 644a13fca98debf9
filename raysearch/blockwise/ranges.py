"""Ranges that workers read part by part: codes of all weights would be half a replica."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from raysearch.blockwise.chain import Chain
from raysearch.blockwise.files import BlockFiles
from raysearch.records import QuantizerRange, RangeTable, Scheme


@dataclass(frozen=True)
class StoredRanges(RangeTable):
    """A table of ranges that is sent without its content, which is in the files.

    Where it was made it is the table itself.

    Attributes:
        chain: the blocks.
        files: hold the ranges in force, a file a part.
        digest_of_table: names them.
    """

    chain: Chain = field(kw_only=True)
    files: BlockFiles = field(kw_only=True)
    digest_of_table: str = field(kw_only=True)

    @classmethod
    def store(cls, table: RangeTable, chain: Chain, files: BlockFiles) -> StoredRanges:
        """A table of weights' ranges, written for workers to read.

        Args:
            table: what is in force.
            chain: the blocks.
            files: take it.
        """
        digest = table.digest()
        for part in chain.parts:
            if not files.has_ranges(digest, part):
                keys = [key for key in table.ranges if chain.part_of(key[0]) == part]
                files.write_ranges(digest, part, _to_bytes({key: table[key] for key in keys}))
        return cls(table.ranges, table.rounded, chain=chain, files=files, digest_of_table=digest)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "ranges": {}, "rounded": {}}

    def digest(self) -> str:
        """See `RangeTable.digest`."""
        return self.digest_of_table

    def of_part(self, part: int) -> RangeTable:
        """A table that has the ranges in force of one part, read where this one has none."""
        if self.ranges:
            return self
        return RangeTable(_from_bytes(self.files.read_ranges(self.digest_of_table, part)))


def _to_bytes(ranges: dict[tuple[str, Scheme], QuantizerRange]) -> bytes:
    tensors: dict[str, np.ndarray] = {}
    for (point, scheme), value in ranges.items():
        key = f"{point}|{scheme}"
        # safetensors writes memory as it lies, so a strided array would come back scrambled.
        tensors[f"{key}|scale"] = np.asarray(value.scale, order="C")
        tensors[f"{key}|zero_point"] = np.asarray(value.zero_point, order="C")
        tensors[f"{key}|signed"] = np.array([value.signed], dtype=np.uint8)
        if value.codes is not None:
            tensors[f"{key}|codes"] = np.asarray(value.codes, order="C")
        if value.minimum is not None:
            tensors[f"{key}|minimum"] = np.asarray(value.minimum, order="C")
    return bytes(save(tensors))


def _from_bytes(data: bytes) -> dict[tuple[str, Scheme], QuantizerRange]:
    tensors = load(data)
    ranges = {}
    for key in tensors:
        point, scheme, name = key.rsplit("|", 2)
        if name == "scale":
            start = f"{point}|{scheme}"
            ranges[point, Scheme.of(scheme)] = QuantizerRange(
                tensors[key],
                tensors[f"{start}|zero_point"],
                bool(tensors[f"{start}|signed"][0]),
                tensors.get(f"{start}|codes"),
                minimum=tensors.get(f"{start}|minimum"),
            )
    return ranges
