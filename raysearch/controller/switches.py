"""Turn quantizers on and off without forgetting which range parameters the user froze."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from raysearch.quantizer import Quantizer


class Switches:
    """The `enabled` flags of quantizers and the `requires_grad` of their range parameters.

    A disabled quantizer's parameters get no gradient, which DDP would wait for; so they are frozen while it
    is off, and get back what they had.
    """

    def __init__(self, quantizers: Mapping[str, Quantizer]) -> None:
        self._quantizers = quantizers
        self._trainable = {(n, k): True for n, q in quantizers.items() for k, _ in q.named_parameters()}
        self._note()

    def set(self, name: str, enabled: bool) -> None:
        """Turn one on or off."""
        self._note(name)
        quantizer = self._quantizers[name]
        quantizer.enabled = enabled
        for key, parameter in quantizer.named_parameters():
            parameter.requires_grad_(enabled and self._trainable[name, key] and not quantizer.frozen)

    def refresh(self) -> None:
        """Make `requires_grad` agree with flags that were changed from outside."""
        for name, quantizer in self._quantizers.items():
            for key, parameter in quantizer.named_parameters():
                learns = self._trainable[name, key] and not quantizer.frozen
                parameter.requires_grad_(quantizer.enabled and learns)

    def frozen(self) -> list[str]:
        """Quantizers that have a range parameter which the user froze."""
        self._note()
        frozen = {name for (name, _), is_trainable in self._trainable.items() if not is_trainable}
        return [name for name in self._quantizers if name in frozen]

    def freeze(self, names: Iterable[str]) -> None:
        """Freeze the range parameters of some quantizers, and free those of the others."""
        frozen = set(names)
        for name, key in self._trainable:
            self._trainable[name, key] = name not in frozen
        self.refresh()

    def _note(self, only: str = "") -> None:
        # Read while enabled: then the flag is the user's, not ours.
        for name in [only] if only else self._quantizers:
            if self._quantizers[name].enabled:
                for key, parameter in self._quantizers[name].named_parameters():
                    self._trainable[name, key] = parameter.requires_grad
