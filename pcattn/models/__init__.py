"""Networks on dense batches: positions (B, N, 3) and features (B, N, F) in, logits or normals out."""

from pcattn.models.pct import PCTBackbone, PCTClassifier
from pcattn.models.segmenter import PCTNormals, PCTSegmenter

__all__ = ["PCTBackbone", "PCTClassifier", "PCTNormals", "PCTSegmenter"]
