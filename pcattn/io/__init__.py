"""Point clouds and meshes on disk: one format a file; `read_cloud` reads any of them, `write_ply` writes."""

from pcattn.io.cloud import Cloud, read_cloud, write_ply

__all__ = ["Cloud", "read_cloud", "write_ply"]
