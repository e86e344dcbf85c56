"""Attention maps: which points a chosen point attends to in one layer of a trained network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pcattn.attention import AttentionMaps, Geometry
from pcattn.layers import AttentionBlock, AttentionLayer
from pcattn.ops import knn
from pcattn.utils.errors import InputError
from pcattn.visualize.scene import Cloud, Field, quantity

# The most heads that are shown, and the most slots of a memory: those that the point attends to most.
_MAX_HEADS, _MAX_SLOTS = 8, 4
_RANKS = ("1st", "2nd", "3rd", "4th")


def attention_layers(network: nn.Module) -> list[nn.Module]:
    """The attention mechanisms of the layers of a network, in order."""
    return [module.core for module in network.modules() if isinstance(module, (AttentionLayer, AttentionBlock))]


@torch.no_grad()
def attention_maps(
    network: nn.Module, forward: Callable[[], Any], layer: int, pos: Tensor, point: int
) -> tuple[AttentionMaps, Tensor, int]:
    """What a point attends to in one layer, while `forward` runs the network on one cloud.

    Args:
        network: the network, in evaluation mode.
        forward: runs the network.
        layer: index of the attention layer, from 0.
        pos: (N, 3), the points of the cloud.
        point: index of one of them. If the layer works on fewer tokens than points, the token nearest to it is taken.

    Returns:
        The maps over the T tokens, the positions (T, 3) of the tokens, and the index of the token.

    Raises:
        InputError: no such layer or point, or the mechanism has no maps.
    """
    cores = attention_layers(network)
    if not 0 <= layer < len(cores):
        raise InputError(f"expected the attention layer in [0, {len(cores)}), but got {layer}")
    if not 0 <= point < len(pos):
        raise InputError(f"expected the point in [0, {len(pos)}), but got {point}")
    core: Any = cores[layer]
    if not hasattr(core, "attention_map"):
        raise InputError(f"expected an attention with attention_map(x, geometry, point), but {type(core)} has none")
    seen: list[tuple[Tensor, Geometry]] = []
    hook = core.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    try:
        forward()
    finally:
        hook.remove()
    x, geometry = seen[0]
    token = int((geometry.pos[0] - pos[point]).norm(dim=1).argmin())
    return core.attention_map(x, geometry, token), geometry.pos[0], token


def show_attention(
    cloud: Cloud,
    network: nn.Module,
    forward: Callable[[], Any],
    pos: Tensor,
    layer: int,
    point: int,
    head: int | None = None,
) -> Cloud:
    """The cloud with a field for each attention map of a point, named by head, slot or gate.

    Colors span the smallest to the largest weight of the map. If there are fewer tokens than points, every point has
    the weight of its nearest token. Of the slots of a memory, only those that the point attends to most are shown; the
    note names them with their shares.

    Args:
        cloud: the cloud to draw; its points are those of `pos`.
        network, forward, pos, layer, point: see `attention_maps`.
        head: number of the only map to show, in the order of the mechanism's names.

    Raises:
        InputError: no such head, and as `attention_maps`.
    """
    maps, tokens, token = attention_maps(network, forward, layer, pos, point)
    weights = maps.weights[0]  # (M, T)
    if head is not None:
        if not 0 <= head < len(maps.names):
            raise InputError(f"expected head in [0, {len(maps.names)}), but got {head}")
        chosen = [head]
    elif maps.slots:
        chosen = weights[:, token].topk(min(_MAX_SLOTS, len(weights))).indices.tolist()
    else:
        chosen = list(range(min(_MAX_HEADS, len(weights))))
    nearest = knn(pos[None], tokens[None], 1).indices[0, :, 0]
    fields: dict[str, Field] = {}
    for rank, each in enumerate(chosen):
        values = weights[each][nearest].double().cpu().numpy()
        # The top slots differ between clouds: named by rank, they share a row of a picture.
        name = f"{_RANKS[rank]} slot" if maps.slots and head is None else maps.names[each]
        fields[f"layer {layer}, {name}"] = quantity(values, float(values.min()), float(values.max()))
    note = cloud.note
    if maps.slots and head is None:
        shares = [f"{maps.names[each]} ({100 * float(weights[each, token]):.0f} %)" for each in chosen]
        note += f"; {', '.join(shares)}"
    return replace(cloud, fields={**cloud.fields, **fields}, marked=point, note=note)
