"""Initialize a network with the weights of another one, for fine-tuning on other classes or with a changed layer."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pcattn.utils.errors import InputError


def initialize(network: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Copy the weights that have the same name and shape in both networks, running statistics included.

    Args:
        network: receives the weights.
        state: state dict of the other network.

    Returns:
        A line for each tensor that was not copied: those of `network`, which keep their values, then those of `state`.

    Raises:
        InputError: no matrix outside the head fits, so the networks have nothing in common; `network` is unchanged.
    """
    own = network.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if not any(value.dim() > 1 and not name.startswith("head.") for name, value in fitting.items()):
        matrix = next((name for name, value in own.items() if value.dim() > 1), "none")
        got = tuple(state[matrix].shape) if matrix in state else "none"
        expected = tuple(own[matrix].shape) if matrix in own else "none"
        raise InputError(
            f"expected weights with the shapes of this network, but none fits; the first, {matrix}, is to be "
            f"{expected}, but got {got}"
        )
    with torch.no_grad():
        for name, value in fitting.items():
            own[name].copy_(value)
    left = []
    for name, value in own.items():
        if name not in fitting:
            there = f"{tuple(state[name].shape)} there" if name in state else "not there"
            left.append(f"{name} {tuple(value.shape)}: {there}, keeps its start")
    left += [f"{name} {tuple(value.shape)}: not in this network" for name, value in state.items() if name not in own]
    return left
