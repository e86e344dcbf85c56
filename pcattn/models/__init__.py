"""Networks on dense batches: positions (B, N, 3) and features (B, N, F) to logits or normals."""

from pcattn.models.hierarchical import HierarchicalBackbone, HierarchicalClassifier
from pcattn.models.hierarchical_segmenter import HierarchicalSegmenter
from pcattn.models.pct import PCTBackbone, PCTClassifier
from pcattn.models.registry import (
    CLASSIFIERS,
    SEGMENTERS,
    ModelName,
    build_classifier,
    build_segmenter,
    create_model,
    list_models,
    register_model,
)
from pcattn.models.segmenter import PCTNormals, PCTSegmenter

__all__ = [
    "CLASSIFIERS",
    "SEGMENTERS",
    "HierarchicalBackbone",
    "HierarchicalClassifier",
    "HierarchicalSegmenter",
    "ModelName",
    "PCTBackbone",
    "PCTClassifier",
    "PCTNormals",
    "PCTSegmenter",
    "build_classifier",
    "build_segmenter",
    "create_model",
    "list_models",
    "register_model",
]
