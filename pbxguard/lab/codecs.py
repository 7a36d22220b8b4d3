"""Turns the payloads of RTP packets into samples, and samples into payloads: G.711, GSM full rate and G.722.

Knows bytes and samples at 8 kHz; does not know packets, order or loss (``wire``). G.711 is two tables and is kept
here; the others are libsndfile's GSM 06.10 and Sippy's libg722, both from wheels of a few hundred kilobytes.
"""

import io
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import soundfile
from G722 import G722

__all__ = ["DECODED", "PCMA", "PCMU", "Decoder", "decode", "decoder", "encode", "ogg_opus"]

Samples = npt.NDArray[np.int16]

RATE = 8000
PCMU, PCMA = 0, 8

GSM_FRAME_BYTES, GSM_FRAME_SAMPLES = 33, 160
# RFC 3551 section 4.5.8.1: each frame begins with this signature in its upper four bits
_GSM_SIGNATURE = 0xD0
# libsndfile's place on the way from the smallest file (1.0) to the largest (0.0); about 24 kbit/s for 8 kHz
_OPUS_LEVEL = 0.93


class Decoder(Protocol):
    """Decodes the payloads of one stream; each leans on those before it, so they come in order."""

    def length(self, payload: bytes) -> int:
        """How many samples (8 kHz) this payload stands for; 0 for one that is none of this codec's."""

    def decode(self, payloads: Iterable[bytes]) -> Samples:
        """All samples of these payloads, one after the other."""


class _G711:
    def __init__(self, payload_type: int) -> None:
        self._type = payload_type

    def length(self, payload: bytes) -> int:
        return len(payload)

    def decode(self, payloads: Iterable[bytes]) -> Samples:
        return decode(b"".join(payloads), self._type)


class _Gsm:
    def length(self, payload: bytes) -> int:
        whole = len(payload) % GSM_FRAME_BYTES == 0
        signed = all(first & 0xF0 == _GSM_SIGNATURE for first in payload[::GSM_FRAME_BYTES])
        return len(payload) // GSM_FRAME_BYTES * GSM_FRAME_SAMPLES if whole and signed else 0

    def decode(self, payloads: Iterable[bytes]) -> Samples:
        data = b"".join(payloads)
        length = len(data) // GSM_FRAME_BYTES * GSM_FRAME_SAMPLES
        if not length:
            return np.zeros(0, np.int16)
        with soundfile.SoundFile(io.BytesIO(data), "r", RATE, 1, subtype="GSM610", format="RAW") as file:
            samples: Samples = file.read(length, dtype="int16", fill_value=0)
        return samples


class _G722:
    """The lower band of G.722: its codec gives 8 kHz directly, and its RTP clock runs at 8 kHz too (RFC 3551)."""

    def length(self, payload: bytes) -> int:
        return len(payload)

    def decode(self, payloads: Iterable[bytes]) -> Samples:
        return np.array(G722(RATE, 64000).decode(b"".join(payloads)), dtype=np.int16)


_DECODERS: dict[str, Callable[[], Decoder]] = {
    "PCMA": lambda: _G711(PCMA),
    "PCMU": lambda: _G711(PCMU),
    "GSM": _Gsm,
    "G722": _G722,
}

#: Encoding names (RFC 3551, upper case) that ``decoder`` knows.
DECODED = frozenset(_DECODERS)


def decoder(codec: str) -> Decoder | None:
    """A new decoder for one stream, or None where the codec is not known."""
    make = _DECODERS.get(codec)
    return make() if make else None


def decode(payload: bytes, payload_type: int) -> Samples:
    """G.711 bytes as int16 samples; ``payload_type`` is 8 for PCMA (A-law) and 0 for PCMU (mu-law)."""
    samples: Samples = _G711_LEVELS[payload_type][np.frombuffer(payload, dtype=np.uint8)]
    return samples


def encode(samples: Samples, payload_type: int) -> bytes:
    """Samples as G.711 bytes, each the nearest level there is: the inverse of ``decode``."""
    levels, codes = np.unique(_G711_LEVELS[payload_type], return_index=True)
    middles = (levels[1:].astype(np.int32) + levels[:-1]) / 2
    return codes[np.searchsorted(middles, samples)].astype(np.uint8).tobytes()


def ogg_opus(samples: Samples) -> bytes:
    """An Ogg Opus file of these samples (8 kHz), small enough to be part of a page."""
    data = io.BytesIO()
    with soundfile.SoundFile(data, "w", RATE, 1, subtype="OPUS", format="OGG", compression_level=_OPUS_LEVEL) as file:
        file.write(np.asarray(samples, np.int16))
    return data.getvalue()


def _g711_levels() -> dict[int, Samples]:
    """The value of each of the 256 codes, from the segments of ITU-T G.711 tables 1 and 2."""
    code = np.arange(256)
    even = code ^ 0x55  # A-law inverts every second bit
    segment, step = (even >> 4) & 7, even & 15
    alaw = np.where(segment == 0, (step << 4) + 8, ((step << 4) + 0x108) << np.maximum(segment - 1, 0))
    inverse = ~code & 0xFF  # mu-law inverts all bits
    ulaw = (((inverse & 15) << 3) + 0x84 << ((inverse >> 4) & 7)) - 0x84
    return {
        PCMA: np.where(even & 0x80, alaw, -alaw).astype(np.int16),
        PCMU: np.where(inverse & 0x80, -ulaw, ulaw).astype(np.int16),
    }


_G711_LEVELS = _g711_levels()
