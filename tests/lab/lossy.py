"""What a telephone line does to a sound: real codecs, packets lost at random, and a phone that hides the loss."""

import io
from dataclasses import replace

import numpy as np
import soundfile
from G722 import G722

from pbxguard.lab.wire import Address, RtpPacket, RtpStream, encode

CODECS = {"PCMU": 0, "PCMA": 8, "GSM": 3, "G722": 9}
A, B = Address("198.18.1.10", 30000), Address("198.18.1.2", 20000)


def payloads(samples, codec):
    """The sound as packets of 20 ms, by the real encoder."""
    padded = np.concatenate([samples, np.zeros(-len(samples) % 160, np.int16)])
    if codec == "GSM":
        data = io.BytesIO()
        soundfile.write(data, padded, 8000, format="RAW", subtype="GSM610")
        return _split(data.getvalue(), 33)
    if codec == "G722":
        # a PBX doubles the rate of its 8 kHz prompt
        spectrum = np.zeros(len(padded) + 1, complex)
        spectrum[: len(padded) // 2 + 1] = np.fft.rfft(padded.astype(float))
        wide = (np.fft.irfft(spectrum, 2 * len(padded)) * 2).round().clip(-32768, 32767).astype(np.int16)
        return _split(bytes(G722(16000, 64000).encode(wide)), 160)
    return _split(encode(padded, CODECS[codec]), 160)


def _split(data, size):
    return [data[at : at + size] for at in range(0, len(data), size)]


def stream(samples, codec):
    """The sound as an RTP stream."""
    packets = tuple(
        RtpPacket(10 + i * 0.02, (65500 + i) & 0xFFFF, 7000 + i * 160, CODECS[codec], payload)
        for i, payload in enumerate(payloads(samples, codec))
    )
    return RtpStream(7, A, B, CODECS[codec], codec, packets)


def lose(sent, share, seed):
    """The stream with this share of its packets lost at random; never the first."""
    kept = np.random.default_rng(seed).random(len(sent.packets)) >= share
    return replace(sent, packets=tuple(p for i, p in enumerate(sent.packets) if kept[i] or i == 0))


def hidden(received):
    """What a phone makes of a stream with losses: the last packet again, quieter each time (as GSM 06.11 does)."""
    sound = received.samples().copy()
    first = received.packets[0].timestamp
    there = {(packet.timestamp - first) // 160 for packet in received.packets}
    for i in range(1, len(sound) // 160):
        if i not in there:
            sound[i * 160 : (i + 1) * 160] = sound[(i - 1) * 160 : i * 160] * 0.7
    return sound


def line(samples, codec="PCMA", *, loss=0.0, conceal=False, seed=0):
    """What is heard of the sound at the other end."""
    received = lose(stream(samples, codec), loss, seed)
    return hidden(received) if conceal else received.samples()
