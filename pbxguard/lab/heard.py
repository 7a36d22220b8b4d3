"""Says which reference sound is contained in what was heard, and how much of it; makes the lab's markers.

Knows samples only: 8 kHz, 16 bit, mono. Does not know packets (``wire``) nor which prompt a verdict plays.
"""

import hashlib
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pbxguard.errors import BadInput

__all__ = ["Match", "Samples", "best", "load_wav", "marker", "match", "write_wav"]

Samples = npt.NDArray[np.int16]
_Signal = npt.NDArray[np.float64]

RATE = 8000
# What is looked at, at most: no prompt lasts longer, and a call that does is a fault found elsewhere.
LONGEST_HEARD_S, LONGEST_REFERENCE_S = 120.0, 30.0

# A block is judged on its own, so that a lost packet (20 ms) costs little and a missing half costs a half.
BLOCK_S = 0.25
# A PBX that misses a timer tick, or a softphone's clock, shifts what follows; each block may lie this far
# from where the one before it put it. Two packets.
SLIP_S = 0.04
# At the beginning, since the lag may be that of what comes after a pause, and after a part that was found it may be
# five: FreeSWITCH on a busy machine has been seen to miss three ticks at once. Not in every case, because the search
# takes its time.
LONG_SLIP_S = 0.1
# Correlation that counts as "not at all" and "wholly". Two unlike pieces of voiced speech reach 0.5 by chance
# at the best lag; G.711 keeps 0.99, one lost packet of a block 0.95, GSM about 0.9.
NONE_AT, WHOLE_AT = 0.55, 0.9
# Below this RMS nothing was heard: G.711 renders silence as up to +-8, comfort noise stays below 20.
FLOOR_RMS = 20.0
# Reference blocks quieter than this part of the loudest are pauses, and a pause proves nothing.
PAUSE = 0.1


@dataclass(frozen=True, slots=True)
class Match:
    """How well a reference is contained in what was heard.

    Attributes:
        score: 0 (nothing of it) to 1 (all of it); half of the reference gives about 0.5.
        start_s: Where the beginning of the reference lies in what was heard, in seconds; negative when its
            beginning was cut off.
        length_s: From the first to the last part of the reference that was found, in seconds.
    """

    score: float
    start_s: float
    length_s: float


_NOTHING = Match(0.0, 0.0, 0.0)


def match(heard: Samples, reference: Samples, rate: int = RATE) -> Match:
    """Say how much of the whole reference is contained in what was heard.

    The reference is laid over what was heard where their normalised cross-correlation is highest; then each
    block of it (0.25 s) is compared on its own with what lies there, and the score is the mean over the
    blocks that are no pauses. The correlation is one of waveforms, because two prompts of one voice have much
    the same spectrum; it is independent of loudness. Both are cut to a bounded length; no samples make it
    fail.

    Args:
        heard: int16 samples, one-dimensional; may be empty.
        reference: int16 samples, one-dimensional.
        rate: Of both, in Hz.
    """
    sound = _signal(heard[: int(LONGEST_HEARD_S * rate)])
    wanted = _signal(reference[: int(LONGEST_REFERENCE_S * rate)])
    block = int(BLOCK_S * rate)
    # the last block is a whole one too: a short rest would match too easily
    begins = np.arange(0, len(wanted) - block + 1, block)
    if not len(begins) or _rms(sound) == 0.0:
        return _NOTHING
    loudness = np.array([_rms(wanted[at : at + block]) for at in begins])
    begins = begins[(loudness > FLOOR_RMS) & (loudness > PAUSE * loudness.max())]
    if not len(begins):
        return _NOTHING

    slips = [int(SLIP_S * rate), int(LONG_SLIP_S * rate)]
    pad = len(wanted) + 2 * slips[-1]
    sound = np.concatenate([np.zeros(pad), sound, np.zeros(pad)])
    lag = _best_lag(sound, wanted)
    between = _half_sample_later(wanted)
    centre = lag
    parts: list[float] = []
    for at in begins:
        forms = [form[at : at + block] for form in (wanted, between)]
        likeness = 0.0
        for slip in slips if not parts or max(parts) > WHOLE_AT else slips[:1]:
            low = min(max(centre + at - slip, 0), len(sound) - block - 2 * slip)
            here = sound[low : low + block + 2 * slip]
            offset, likeness = max((_compare(here, form) for form in forms), key=lambda found: found[1])
            if likeness > WHOLE_AT:
                break
        if likeness > NONE_AT:
            centre = int(low + offset - at)
        parts.append(likeness)
    scores = np.clip((np.array(parts) - NONE_AT) / (WHOLE_AT - NONE_AT), 0.0, 1.0)
    found = begins[scores > 0.5]
    if not len(found):
        return Match(float(scores.mean()), 0.0, 0.0)
    length = float(found[-1] + block - found[0]) / rate
    return Match(float(scores.mean()), float(lag - pad) / rate, length)


def best(heard: Samples, references: Mapping[str, Samples], rate: int = RATE) -> tuple[str, Match]:
    """The name of the reference that is contained best, and how well; ("", score 0) where there is none."""
    name, found = "", _NOTHING
    for candidate, reference in references.items():
        result = match(heard, reference, rate)
        if result.score > found.score:
            name, found = candidate, result
    return name, found


def marker(name: str, seconds: float = 3.0) -> Samples:
    """A sound that belongs to this name alone, to prove who heard whom; always the same samples for a name.

    A row of short glides (100 ms each) between frequencies of 400 to 2600 Hz that are drawn from the SHA-256
    of the name; -13 dBFS, so that G.711, GSM and a softphone's mixer pass it unharmed.
    """
    step = RATE // 10
    count = max(1, round(seconds * 10))
    drawn = b"".join(hashlib.sha256(f"{name}/{i}".encode()).digest() for i in range(count // 16 + 2))
    fade = np.minimum(1.0, np.minimum(np.arange(step), np.arange(step)[::-1]) / (0.005 * RATE))
    glides = []
    for i in range(count):
        begin, end = (400.0 + 2200.0 * drawn[2 * i + k] / 255.0 for k in (0, 1))
        frequency = np.linspace(begin, end, step)
        glides.append(fade * np.sin(2 * np.pi * np.cumsum(frequency) / RATE))
    return np.round(np.concatenate(glides) * 32767 * 10 ** (-10 / 20)).astype(np.int16)


def load_wav(path: Path) -> Samples:
    """The samples of an 8 kHz, 16 bit, mono WAV file.

    Raises:
        BadInput: It is missing, or has another format.
    """
    try:
        with wave.open(str(path), "rb") as wav:
            form = (wav.getframerate(), wav.getsampwidth(), wav.getnchannels())
            frames = wav.readframes(wav.getnframes())
    except OSError as exc:
        raise BadInput(f"{path}: {exc.strerror or 'cannot be read'}") from exc
    except (wave.Error, EOFError) as exc:
        raise BadInput(f"{path}: not a PCM WAV file ({exc}); convert it to 8000 Hz, 16 bit, mono") from exc
    if form != (RATE, 2, 1):
        raise BadInput(
            f"{path}: {form[0]} Hz, {form[1] * 8} bit, {form[2]} channel(s); convert it to 8000 Hz, 16 bit, mono"
        )
    return np.frombuffer(frames[: len(frames) // 2 * 2], dtype="<i2").astype(np.int16)


def write_wav(path: Path, samples: Samples, rate: int = RATE) -> None:
    """Write int16 samples as a mono WAV file."""
    with wave.open(str(path), "wb") as wav:
        wav.setparams((1, 2, rate, 0, "NONE", "not compressed"))
        wav.writeframes(np.asarray(samples).astype("<i2").tobytes())


def _signal(samples: Samples) -> _Signal:
    """Samples without a constant offset: G.711 encoders and sound cards add one."""
    signal = np.asarray(samples, dtype=np.float64).reshape(-1)
    return signal - signal.mean() if len(signal) else signal


def _rms(signal: _Signal) -> float:
    return float(np.sqrt(np.mean(signal**2))) if len(signal) else 0.0


def _energies(sound: _Signal, length: int) -> _Signal:
    """Energy of each window of this length, never less than that of the quietest sound that counts."""
    total = np.concatenate([[0.0], np.cumsum(sound**2)])
    energies: _Signal = np.maximum(total[length:] - total[:-length], length * FLOOR_RMS**2)
    return energies


def _correlate(sound: _Signal, wanted: _Signal) -> _Signal:
    """Normalised cross-correlation (-1..1) of wanted with each window of sound, by FFT."""
    size = 1 << (len(sound) + len(wanted)).bit_length()
    product = np.fft.rfft(sound, size) * np.conj(np.fft.rfft(wanted, size))
    raw = np.fft.irfft(product, size)[: len(sound) - len(wanted) + 1]
    norm = np.sqrt(_energies(sound, len(wanted)) * max(float(np.sum(wanted**2)), 1.0))
    likeness: _Signal = raw / norm
    return likeness


def _half_sample_later(signal: _Signal) -> _Signal:
    """The same sound as a softphone that resamples hands it on: its clock's grid falls between ours."""
    spectrum = np.fft.rfft(signal)
    turn = np.exp(-1j * np.pi * np.arange(len(spectrum)) / len(signal))
    later: _Signal = np.fft.irfft(spectrum * turn, len(signal))
    return later


def _best_lag(sound: _Signal, wanted: _Signal) -> int:
    return int(np.argmax(_correlate(sound, wanted)))


def _compare(sound: _Signal, wanted: _Signal) -> tuple[int, float]:
    """Where in sound this block lies best, and how alike they are there."""
    norm = np.sqrt(_energies(sound, len(wanted)) * float(np.sum(wanted**2)))
    likeness = np.correlate(sound, wanted, mode="valid") / norm
    at = int(np.argmax(likeness))
    return at, float(likeness[at])
