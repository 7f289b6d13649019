"""One call of the caller's model: latents (B, d) in, flat outputs (B, D) out, nothing else touched."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DecoderError
from .carried import over_copies, tensors_used_by
from .conditions import arguments
from .outputs import Output, pick
from .written import modules_of, without_graphs


@dataclass(frozen=True)
class Call:
    """A model with everything settled that a call needs, so that it is a function of ``z`` alone.

    Attributes:
        target: what is called.
        roots: the modules that ``target`` belongs to, for their mode, dtype and device.
        output: see :func:`~posthoc_metric.decoder.outputs.pick`.
        condition: see :func:`~posthoc_metric.decoder.conditions.arguments`.
        latent_shape: the shape of one latent as the model wants it; ``None`` for (d,).
        dtype, device: of the latents that the model wants.
        as_numpy: hand the latents over as a NumPy array.
        batch: the only number of rows the model takes; ``None`` where it takes any.
        most: the largest number of rows it takes; ``None`` where it takes any.
        alone: whether the model takes a row without others.
        stands_for: the modules that those in ``roots`` are copies of, where the caller has these.
    """

    target: Callable[..., Any]
    roots: tuple[nn.Module, ...] = ()
    output: Output = None
    condition: Any = None
    latent_shape: tuple[int, ...] | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")
    as_numpy: bool = False
    batch: int | None = None
    most: int | None = None
    alone: bool = True
    stands_for: tuple[nn.Module, ...] = ()

    def __call__(self, z: Tensor) -> Tensor:
        """(B, d) -> (B, D), in torch operations where the model is."""
        return self.shaped(z).reshape(z.shape[0], -1)

    def shaped(self, z: Tensor) -> Tensor:
        """(B, d) -> (B, ...) in the model's own shape."""
        if not self.alone and len(z) == 1:
            return self._once(z.expand(2, -1))[:1]
        if self.batch is None:
            pieces = [self._once(piece) for piece in z.split(self.most or max(1, len(z)))]
            return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        pieces = []
        for piece in z.split(self.batch):
            missing = self.batch - piece.shape[0]
            padded = torch.cat([piece, piece[-1:].expand(missing, -1)]) if missing else piece
            pieces.append(self._once(padded)[: piece.shape[0]])
        return torch.cat(pieces)

    def _once(self, z: Tensor) -> Tensor:
        # the clone keeps a model that writes into its input away from the caller's tensor
        shape = (z.shape[0], *self.latent_shape) if self.latent_shape else z.shape
        latents = z.reshape(shape).clone(memory_format=torch.contiguous_format)
        positional, named = arguments(self.condition, latents)
        if self.as_numpy:
            result = self.target(latents.detach().cpu().numpy(), *positional, **named)
        else:
            result = self.target(latents, *positional, **named)
        picked = pick(result, self.output)
        if picked.ndim == 0 or (picked.shape[0] != z.shape[0] and z.shape[0] != 1):
            raise DecoderError(
                f"the decoder must keep the batch axis first: {z.shape[0]} latents gave an output of shape "
                f"{tuple(picked.shape)}. Wrap it in a function that moves or adds that axis."
            )
        if picked.shape[0] != z.shape[0]:
            picked = picked.unsqueeze(0)  # a squeeze() in the model took the axis of a single row
        picked = picked.to(self.device) if self.as_numpy else picked
        # what a single model gave is no more exact for being cast to double, and is not to be taken for it
        return picked.to(self.dtype) if self.dtype != torch.float64 == picked.dtype else picked

    def copied(self, dtype: torch.dtype) -> Call:
        """The same call on a deep copy of the model in another precision.

        Raises:
            Exception: whatever the model raises when it is copied or converted.
        """
        memo = without_graphs(self.roots)
        copy.deepcopy(self.roots, memo)
        for tensor in tensors_used_by(self.target, self.output, self.condition):
            memo.setdefault(id(tensor), tensor.detach().to(dtype))  # unless it is a module's parameter too
        twin = copy.deepcopy(self, memo)
        for root in twin.roots:
            with warnings.catch_warnings():
                # a scripted model's copy has weights that torch looks for a gradient in, and warns of
                warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor", UserWarning)
                root.to(dtype)
            for module in root.modules():
                for name, value in list(vars(module).items()):
                    if isinstance(value, Tensor) and value.is_floating_point():
                        vars(module)[name] = value.to(dtype)  # one that is no buffer is not converted otherwise
        return replace(twin, dtype=dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> Call:
        roots = copy.deepcopy(self.roots, memo)
        for module in modules_of(roots):
            for name, value in list(vars(module).items()):
                # over the module itself, as solvers of equations are given one; what torch keeps has a name of its own
                if inspect.isfunction(value) or (isinstance(value, (dict, list, tuple)) and not name.startswith("_")):
                    vars(module)[name] = over_copies(value, memo)
        carrying = {name: over_copies(getattr(self, name), memo) for name in ("target", "output", "condition")}
        if carrying["target"] is self.target:
            carrying["target"] = copy.deepcopy(self.target, memo)
        return replace(self, roots=roots, **carrying)
