"""Attention on point clouds: PCT-style transformers whose attention is a one-word choice.

Importing this package needs torch alone; `pcattn.tasks`, `pcattn.datasets` and the command line load Lightning,
torch-geometric and h5py when they are imported.
"""

__version__ = "0.1.0"
