"""What a caller has set for torch as a whole, put aside while the library works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor


@contextmanager
def own_precision() -> Iterator[None]:
    """Inside, models compute in the dtype of their weights, whatever autocast the caller is in.

    Derivatives that autocast takes in half precision are too rough to solve with, and nothing would say so.
    """
    accelerator = torch.accelerator.current_accelerator()
    kinds = {"cpu", accelerator.type if accelerator else "cpu"}
    with ExitStack() as stack:
        for kind in kinds:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Inside, torch computes in one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def lasting() -> Iterator[None]:
    """Inside, tensors are made for all later uses: one that is made in inference mode can be in no graph ever after."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def recording() -> Iterator[None]:
    """Inside, autograd records what is done, whatever mode the caller is in."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def leaf(z: Tensor) -> Tensor:
    """``z`` as a leaf of a graph, inside :func:`recording`; a tensor made in inference mode can be none."""
    return (z.clone() if z.is_inference() else z.detach()).requires_grad_(True)
