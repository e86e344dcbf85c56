"""Trained networks in use: `load`, `Model`, checkpoints, fine-tuning, export and evaluation of a run."""

from pcattn.inference.model import Classes, Model, Parts, load

__all__ = ["Classes", "Model", "Parts", "load"]
