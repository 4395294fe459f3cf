"""Public keys of checkpoints: 32 bytes that are one point of Ed25519's prime-order group.

RFC 8032 leaves it to a verifier which other encodings it takes, and libraries differ. A key of
small order lets anybody sign; one with a part of small order is taken by some verifiers where
others refuse; and a point may be written in more than one way. So a key is sound only if it is the
one encoding (RFC 8032, 5.1.3: y below p, no sign where x is 0) of a point that the group's order L
takes to the neutral element, and that is not the neutral element itself. Nothing here is secret.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

_P: Final = 2**255 - 19
_L: Final = 2**252 + 27742317777372353535851937790883648493
_L_BITS: Final = f"{_L:b}"
_D: Final = -121665 * pow(121666, -1, _P) % _P
_ROOT_OF_MINUS_1: Final = pow(2, (_P - 1) // 4, _P)
PUBLIC_KEY_LENGTH: Final = 32


# A checkpoint's key is asked about when it is named and when it is used; it takes a millisecond.
@lru_cache(maxsize=64)
def is_sound_key(public_key: bytes) -> bool:
    """Return whether these are the bytes of a public key that one private key alone can sign for.

    Args:
        public_key: Any bytes.
    """
    if len(public_key) != PUBLIC_KEY_LENGTH:
        return False
    point = _decode(public_key)
    return point is not None and point != (0, 1) and _is_of_prime_order(*point)


def _decode(data: bytes) -> tuple[int, int] | None:
    """Return the point that is written so; None where no point is, or is not written so."""
    number = int.from_bytes(data, "little")
    sign, y = number >> 255, number & (1 << 255) - 1
    if y >= _P:
        return None
    above, below = (y * y - 1) % _P, (_D * y * y + 1) % _P
    x = above * below**3 * pow(above * below**7 % _P, (_P - 5) // 8, _P) % _P
    if below * x * x % _P != above:
        x = x * _ROOT_OF_MINUS_1 % _P
    if below * x * x % _P != above or (x == 0 and sign):
        return None
    return (x if x & 1 == sign else _P - x), y


def _is_of_prime_order(x: int, y: int) -> bool:
    """Return whether L times a point is the neutral element.

    In extended coordinates, with the complete formulas for a = -1 of Hisil, Wong, Carter, Dawson:
    Twisted Edwards Curves Revisited, ASIACRYPT 2008: no pair of points is an exception to them.
    """
    minus, plus, both = (y - x) % _P, (y + x) % _P, 2 * _D * x * y % _P
    x1, y1, z1 = 0, 1, 1
    for bit in _L_BITS:
        a, b = x1 * x1, y1 * y1
        h, g = a + b, a - b
        e, f = h - (x1 + y1) * (x1 + y1), 2 * z1 * z1 + g
        x1, y1, z1, t1 = e * f % _P, g * h % _P, f * g % _P, e * h
        if bit == "1":
            a, b = (y1 - x1) * minus, (y1 + x1) * plus
            c = t1 % _P * both
            e, f, g, h = b - a, 2 * z1 - c, 2 * z1 + c, b + a
            x1, y1, z1 = e * f % _P, g * h % _P, f * g % _P
    return x1 == 0 and y1 == z1
