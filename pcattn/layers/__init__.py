"""Layers that networks are built from: LBR, local aggregation, and the layers around an attention mechanism."""

from pcattn.layers.attention import AttentionBlock, AttentionLayer
from pcattn.layers.lbr import LBR
from pcattn.layers.local_aggregation import LocalAggregation
from pcattn.layers.network_input import LARGEST_INPUT, network_input

__all__ = ["LARGEST_INPUT", "LBR", "AttentionBlock", "AttentionLayer", "LocalAggregation", "network_input"]
