"""Nearest neighbors and ball queries."""

from pcattn.ops.neighbors.op import KNN, ball_query, knn

__all__ = ["KNN", "ball_query", "knn"]
