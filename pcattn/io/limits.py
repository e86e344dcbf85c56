"""How much may come out of a compressed file: what a stranger sends must not fill the memory."""

from pcattn.utils.errors import InputError

_MOST = 1032  # deflate turns no byte into more
_SMALL = 1 << 28  # bytes, which any machine has
_LARGE = 64  # labels compress well; but the file of a large cloud holds coordinates too, which hardly do


def check_expansion(name: str, size: int, stored: int, file_size: int) -> None:
    """Refuse an array of which a file says that it has `size` bytes, made of `stored` bytes of the file.

    Raises:
        InputError: so many bytes cannot come of these, or do so in bombs alone.
    """
    if size > _MOST * stored or size > max(_SMALL, _LARGE * file_size):
        raise InputError(f"expected an array {name} that fits its {stored} bytes in the file, but got {size} bytes")
