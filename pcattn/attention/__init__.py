"""Attention mechanisms on point sets: interchangeable cores `(x, geometry) -> (B, N, C)`, chosen by name."""

from pcattn.attention.build import ATTENTION, build_attention, layer_kwargs
from pcattn.attention.geometry import Geometry
from pcattn.attention.layer import AttentionLayer
from pcattn.attention.maps import AttentionMaps

__all__ = ["ATTENTION", "AttentionLayer", "AttentionMaps", "Geometry", "build_attention", "layer_kwargs"]
