"""Attention mechanisms on point clouds: interchangeable cores `(x, geometry) -> (B, N, C)`, selected by name.

Cores from `build_attention` check their input; the classes alone do not.
"""

from pcattn.attention.acmix import ACmixAttention
from pcattn.attention.axial import AxialAttention
from pcattn.attention.external import ExternalAttention
from pcattn.attention.flops import register_formulas
from pcattn.attention.geometry import Geometry
from pcattn.attention.maps import AttentionMaps
from pcattn.attention.multihead_external import MultiheadExternalAttention
from pcattn.attention.neighborhood import NeighborhoodAttention
from pcattn.attention.offset import OffsetAttention
from pcattn.attention.polarized import PolarizedAttention
from pcattn.attention.registry import (
    ATTENTION,
    AttentionName,
    build_attention,
    layer_kwargs,
    register_attention,
    supported_kwargs,
)
from pcattn.attention.self_attention import SelfAttention

__all__ = [
    "ATTENTION",
    "ACmixAttention",
    "AttentionMaps",
    "AttentionName",
    "AxialAttention",
    "ExternalAttention",
    "Geometry",
    "MultiheadExternalAttention",
    "NeighborhoodAttention",
    "OffsetAttention",
    "PolarizedAttention",
    "SelfAttention",
    "build_attention",
    "layer_kwargs",
    "register_attention",
    "supported_kwargs",
]

register_formulas()
