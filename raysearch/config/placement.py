"""Where quantizers go, and which schemes they may take."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from raysearch.config.section import SchemeValue, SchemeValues, Section, Width
from raysearch.records.scheme import Scheme


class OverrideConfig(Section):
    """What is set for the layers or quantizers of one scope; null leaves it as it is."""

    bits: SchemeValues | None = None
    mode: Literal["symmetric", "asymmetric"] | None = None
    granularity: Literal["per_channel", "per_tensor"] | None = None
    signed: bool | None = None
    pinned: SchemeValue | None = None

    @property
    def schemes(self) -> tuple[Scheme, ...] | None:
        """The schemes that are left, ascending; None: those that it would have without."""
        if self.pinned is not None:
            return (Scheme.of(self.pinned),)
        if self.bits is None:
            return None
        several = self.bits if isinstance(self.bits, tuple) else (self.bits,)
        return tuple(sorted(set(map(Scheme.of, several))))


class PlacementConfig(Section):
    """Where quantizers go, and which schemes they may take.

    Without activation widths, weights alone are quantized.
    """

    weight_bit_widths: tuple[Width, ...] = Field((2, 3, 4, 8), min_length=1)
    weight_schemes: tuple[SchemeValue, ...] = ()
    activation_bit_widths: tuple[Width, ...] = (8,)
    pins: dict[str, SchemeValue] = Field(default_factory=dict)
    target_scopes: tuple[str, ...] = ()
    ignored_scopes: tuple[str, ...] = ()
    overrides: dict[str, OverrideConfig] = Field(default_factory=dict)
    profile: str = "any"
    scale_dtype: Literal["float32", "float16", "bfloat16", "model"] | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> PlacementConfig:
        # Widths at their default were not chosen, also where settings went through JSON.
        is_chosen = self.weight_bit_widths != type(self).model_fields["weight_bit_widths"].default
        widths = {scheme.num_bits for scheme in self.schemes}
        if is_chosen and widths != set(self.weight_bit_widths):
            raise ValueError(
                f"weight_bit_widths are {', '.join(map(str, sorted(self.weight_bit_widths)))}, but "
                f"weight_schemes are {', '.join(map(str, self.weight_schemes))}; give one of the two"
            )
        return self

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """The schemes that a weight may take where nothing else is set, ascending."""
        return tuple(sorted(set(map(Scheme.of, self.weight_schemes or self.weight_bit_widths))))
