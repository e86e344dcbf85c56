"""Mutations without a guide: what the ordinary tests run, everywhere and in the same order."""

import random
from collections.abc import Iterator, Sequence

#: Numbers at which counts, sizes and offsets go wrong.
_NUMBERS = [b"0", b"-1", b"255", b"65536", b"2147483648", b"4294967295", b"1000000000000", b"1e309", b"nan", b"inf"]
_BYTES = [(0).to_bytes(4, "little"), b"\xff" * 4, b"\xff" * 8, b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\n", b"\0"]


def mutations(seeds: Sequence[bytes], number: int, seed: int) -> Iterator[bytes]:
    """`number` contents made of valid ones by up to four changes each."""
    chance = random.Random(seed)
    for _ in range(number):
        content = chance.choice(seeds)
        for _ in range(chance.randint(1, 4)):
            content = _change(content, chance, seeds)
        yield content


def _change(content: bytes, chance: random.Random, seeds: Sequence[bytes]) -> bytes:
    start = chance.randint(0, len(content))
    stop = min(len(content), start + chance.choice((1, 1, 2, 4, 8, 30)))
    kind = chance.randrange(7)
    if kind == 0:  # cut off
        return content[:start]
    if kind == 1:  # left out
        return content[:start] + content[stop:]
    if kind == 2:  # repeated
        return content[:stop] + content[start:]
    if kind == 3:  # a bit
        flipped = bytearray(content or b"\0")
        flipped[start % len(flipped)] ^= 1 << chance.randrange(8)
        return bytes(flipped)
    if kind == 4:  # another number in text
        digits = [i for i, byte in enumerate(content) if 48 <= byte <= 57]
        if digits:
            at = chance.choice(digits)
            end = at
            while end < len(content) and 48 <= content[end] <= 57:
                end += 1
            return content[:at] + chance.choice(_NUMBERS) + content[end:]
    if kind == 5:  # other bytes in their place
        other = chance.choice(_BYTES)
        return content[:start] + other + content[start + len(other) :]
    other = chance.choice(seeds)  # the end of another
    return content[:start] + other[chance.randint(0, len(other)) :]
