"""Point clouds and meshes on disk, one module per format: `read_cloud` reads all of them, `write_ply` writes PLY."""

from pcattn.io.cloud import Cloud, read_cloud, write_ply

__all__ = ["Cloud", "read_cloud", "write_ply"]
