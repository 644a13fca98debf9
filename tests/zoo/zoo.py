"""All models of the zoo."""

from __future__ import annotations

from tests.zoo.entry import Entry
from tests.zoo.families import FAMILIES
from tests.zoo.nets import NETS

ZOO: dict[str, Entry] = {**NETS, **FAMILIES}
