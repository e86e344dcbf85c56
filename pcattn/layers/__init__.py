"""Layers that networks are built from: LBR, local aggregation, and the layers around an attention mechanism."""

from pcattn.layers.attention import AttentionBlock, AttentionLayer
from pcattn.layers.lbr import LARGEST_INPUT, LBR, LocalAggregation, network_input

__all__ = ["LARGEST_INPUT", "LBR", "AttentionBlock", "AttentionLayer", "LocalAggregation", "network_input"]
