"""Attention mechanisms on point sets: interchangeable cores `(x, geometry) -> (B, N, C)`, chosen by name."""

from pcattn.attention.build import ATTENTION, accepted, build_attention, layer_kwargs
from pcattn.attention.geometry import Geometry
from pcattn.attention.layer import AttentionBlock, AttentionLayer
from pcattn.attention.maps import AttentionMaps

__all__ = [
    "ATTENTION",
    "AttentionBlock",
    "AttentionLayer",
    "AttentionMaps",
    "Geometry",
    "accepted",
    "build_attention",
    "layer_kwargs",
]
