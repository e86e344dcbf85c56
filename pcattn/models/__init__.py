"""Networks on dense batches: positions (B, N, 3) and features (B, N, F) in, logits out."""

from pcattn.models.pct import PCTBackbone, PCTClassifier

__all__ = ["PCTBackbone", "PCTClassifier"]
