"""Says which reference sound is contained in what was heard, and how much of it; makes the lab's markers.

Knows samples only: 8 kHz, 16 bit, mono. Does not know packets (``wire``) nor which prompt a verdict plays.
"""

import hashlib
import itertools
import wave
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
# What comes after a pause may be as late as this: when the whole machine stood still, a PBX plays on where it was. It
# counts only if it is the reference beyond doubt and all was quiet until then: speech that was left out, or something
# else that was said in between, is no pause.
PAUSED_S = 0.5
# Pieces of half a frame that may be loud in a pause, since a codec rings on. Before and after it GSM makes what is
# soft loud now and then, for up to a third of the pause's length, but not for long in a row.
_RINGS_ON, _IN_A_ROW = 4, 5
# Correlation that counts as "not at all" and "wholly". Half of all unlike blocks reach 0 at their best lag, 95 of
# 100 stay below 0.3; G.711 keeps 0.99, G.722 0.95, GSM 0.93, and GSM that lost 5 % of its packets 0.86 on average.
NONE_AT, WHOLE_AT = 0.45, 0.8
# A block as alike as this tells where the sound lies; one that is less alike is not followed.
FOLLOW_AT = 0.55
# A block less alike than this was not heard: 1 of 200 is after GSM with 5 % loss, 97 of 100 unlike ones are.
HEARD_AT = 0.4
# Below this RMS nothing was heard: G.711 renders silence as up to +-8, comfort noise stays below 20.
FLOOR_RMS = 20.0
# Reference blocks quieter than this part of the loudest are pauses, and a pause proves nothing.
PAUSE = 0.1

# What follows is about the parts of a reference, in frames of 20 ms: one packet.
FRAME = RATE // 50
# A frame this much quieter than it ought to be is a hole.
HOLE = 0.2
# Packets are lost one by one: five in a row happen once in hours at 5 % loss. Other sound in place of the reference
# is told from a bad line only over a whole block.
GAP_FRAMES, COVERED_FRAMES = 5, 13
# A part shorter than this, amid none, is chance.
ISLAND_FRAMES = 10
# With less than this there are no parts to tell of: the best of all wrong references reaches 0.06.
BEGUN = 0.1


@dataclass(frozen=True, slots=True)
class Match:
    """How well a reference is contained in what was heard.

    Attributes:
        score: 0 (nothing of it) to 1 (all of it); half of the reference gives about 0.5.
        start_s: Where the beginning of the reference lies in what was heard, in seconds; negative when its
            beginning was cut off.
        length_s: From the first to the last part of the reference that was found, in seconds.
        span: From where to where it was heard, in seconds of what was heard; (0, 0) when it was not.
        part: Which part of the reference that is, in seconds of the reference; pauses at its ends left out.
        cut_s: Seconds of sound, pauses left out, that the reference has before and after that part.
        gaps: Within the span, from where to where it was not heard for 0.1 s or more.
        share: Of its sounding frames between the first and the last that were heard, how many were: 1 less those lost
            one by one, too.
    """

    score: float
    start_s: float
    length_s: float
    span: tuple[float, float] = (0.0, 0.0)
    part: tuple[float, float] = (0.0, 0.0)
    cut_s: tuple[float, float] = (0.0, 0.0)
    gaps: tuple[tuple[float, float], ...] = ()
    share: float = 0.0


_NOTHING = Match(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class _Block:
    """One block of the reference, where it lies best: ``at`` in the reference, ``offset`` from there to the sound."""

    at: int
    offset: int
    likeness: float


def match(heard: Samples, reference: Samples, rate: int = RATE) -> Match:
    """Say how much of the whole reference is contained in what was heard, and which parts.

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
    grid = np.arange(0, len(wanted) - block + 1, block)
    if not len(grid) or _rms(sound) == 0.0:
        return _NOTHING
    loudest = max(_rms(wanted[at : at + block]) for at in grid)
    # a rest of fewer samples belongs to the last block too: it is looked at from its end
    dense = np.unique(np.append(np.arange(0, len(wanted) - block + 1, block // 2), len(wanted) - block))

    def sounding(begins: npt.NDArray[np.int64]) -> list[int]:
        floor = max(FLOOR_RMS, PAUSE * loudest)
        return [int(at) for at in begins if _rms(wanted[at : at + block]) > floor]

    begins = sounding(grid)
    if not begins:
        return _NOTHING
    pad = len(wanted) + 2 * int(PAUSED_S * rate)
    padded = np.concatenate([np.zeros(pad), sound, np.zeros(pad)])
    lag = _best_lag(padded, wanted)
    forms = (wanted, _half_sample_later(wanted))
    blocks = _lay(padded, forms, begins, lag, rate)
    scores = np.clip((np.array([b.likeness for b in blocks]) - NONE_AT) / (WHOLE_AT - NONE_AT), 0.0, 1.0)
    score = float(scores.mean())
    found = [at for at, each in zip(begins, scores, strict=True) if each > 0.5]
    if not found:
        return Match(score, 0.0, 0.0)
    result = Match(score, float(lag - pad) / rate, float(found[-1] + block - found[0]) / rate)
    if score < BEGUN:
        return result
    return _parts(result, padded, wanted, _lay(padded, forms, sounding(dense), lag, rate), pad, rate)


def _lay(sound: _Signal, forms: tuple[_Signal, ...], begins: list[int], lag: int, rate: int) -> list[_Block]:
    """Each block of the reference where it lies best: near the lag, or near where the blocks beside it lie.

    ``forms`` are the reference as it may have been handed on; for each block the one counts that is most alike.
    From the block that lies best both ways: what slipped may be before it as well as after it.
    """
    block = int(BLOCK_S * rate)

    def look(at: int, centre: int, slip_s: float) -> _Block:
        slip = int(slip_s * rate)
        low = min(max(centre + at - slip, 0), len(sound) - block - 2 * slip)
        here = sound[low : low + block + 2 * slip]
        offset, likeness = max((_compare(here, form[at : at + block]) for form in forms), key=lambda each: each[1])
        return _Block(at, int(low + offset - at), likeness)

    found = [look(at, lag, SLIP_S) for at in begins]
    anchor = max(range(len(found)), key=lambda i: found[i].likeness)
    if found[anchor].likeness <= FOLLOW_AT:
        return found
    slip_s = LONG_SLIP_S if found[anchor].likeness > WHOLE_AT else SLIP_S
    for way in (range(anchor + 1, len(found)), range(anchor - 1, -1, -1)):
        last = found[anchor]
        for i in way:
            if found[i].likeness <= WHOLE_AT:
                found[i] = max(found[i], look(begins[i], last.offset, slip_s), key=lambda each: each.likeness)
            if found[i].likeness <= FOLLOW_AT and slip_s == LONG_SLIP_S:
                other = look(begins[i], last.offset, PAUSED_S)
                before, after = (last, other) if i > anchor else (other, last)
                if other.likeness > WHOLE_AT and _is_pause(sound, forms[0], before, after, block):
                    found[i] = other
            if found[i].likeness > FOLLOW_AT:
                last = found[i]
    return found


def _is_pause(sound: _Signal, wanted: _Signal, before: _Block, after: _Block, block: int) -> bool:
    """Whether *after* comes late because nothing was said for so long.

    Nobody knows at which moment between the two that was, so each is tried: the reference is laid before it as
    *before* lies, and behind it as *after* does. What is loud in the pause, or where the reference is soft, was said
    in addition, and with much of that it was no pause.
    """
    late, first, end = after.offset - before.offset, before.at, after.at + block
    if late <= 0:
        return False
    sure = max(before, after, key=lambda each: each.likeness)
    floor = HOLE * _rms(wanted[sure.at : sure.at + block])
    loud = max(FLOOR_RMS, floor * _gain(sound, wanted, sure, block))
    soft = _levels(wanted[first:end]) < max(FLOOR_RMS, floor / 2)  # a codec makes it louder at times
    in_time, too_late = (soft & (_levels(sound[first + o : end + o]) > loud) for o in (before.offset, after.offset))
    between = _levels(sound[first + before.offset : end + after.offset]) > loud
    pause = len(between) - len(soft)
    for at in range(len(soft) + 1):
        within = between[at : at + pause]
        added = np.concatenate([in_time[:at], within, too_late[at:]])
        few = np.count_nonzero(within) <= _RINGS_ON and 3 * np.count_nonzero(added) < pause
        if few and _longest(added) <= _IN_A_ROW:
            return True
    return False


def _longest(those: npt.NDArray[np.bool_]) -> int:
    """Of how many in a row it is true, at most."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], those, [False]])))
    return int(np.max(edges[1::2] - edges[::2], initial=0))


def _levels(signal: _Signal) -> _Signal:
    """The RMS of each half of a frame."""
    piece = FRAME // 2
    levels: _Signal = np.sqrt(np.mean(np.square(signal[: len(signal) // piece * piece].reshape(-1, piece)), axis=1))
    return levels


def _parts(found: Match, sound: _Signal, wanted: _Signal, blocks: list[_Block], pad: int, rate: int) -> Match:
    """Which frames of the reference were heard, as spans: from where to where, cut off where, with which gaps."""
    frame, block = FRAME * rate // RATE, int(BLOCK_S * rate)
    followed = [b for b in blocks if b.likeness > FOLLOW_AT] or blocks
    levels = [_rms(wanted[at : at + frame]) for at in range(0, len(wanted) - frame + 1, frame)]
    floor = max(FLOOR_RMS, PAUSE * max(levels))
    frames = [i for i, level in enumerate(levels) if level > floor]
    if not frames:
        return found
    gain = float(np.median([_gain(sound, wanted, b, block) for b in followed]))
    middle = np.array([b.at + block // 2 for b in blocks])
    middle_followed = np.array([b.at + block // 2 for b in followed])
    there: list[bool] = []
    silent: list[bool] = []
    places: list[int] = []
    for i in frames:
        here = i * frame + frame // 2
        near = blocks[int(np.argmin(np.abs(middle - here)))]
        # where a pause was, one of them lies before it and the other after
        offsets = {followed[int(at)].offset for at in np.argsort(np.abs(middle_followed - here), kind="stable")[:2]}
        said = wanted[i * frame : (i + 1) * frame]
        place = max(
            (min(max(i * frame + offset, 0), len(sound) - frame) for offset in sorted(offsets)),
            key=lambda at: float(np.dot(sound[at : at + frame], said)),
        )
        quiet = _rms(sound[place : place + frame]) < HOLE * gain * levels[i]
        places.append(place - pad)
        silent.append(quiet)
        there.append(not quiet and near.likeness >= HEARD_AT)
    runs = _without_islands(_runs(there))
    heard_runs = [run for run in runs if run[2]]
    if not heard_runs:
        return found
    first, last = heard_runs[0][0], heard_runs[-1][1] - 1
    step = frame / rate
    gaps = tuple(
        (round(places[begin] / rate, 3), round(places[end - 1] / rate + step, 3))
        for begin, end, is_there in runs
        if not is_there and first < begin and end <= last and _is_gap(silent[begin:end])
    )
    return replace(
        found,
        span=(round(places[first] / rate, 3), round(places[last] / rate + step, 3)),
        part=(round(frames[first] * step, 3), round((frames[last] + 1) * step, 3)),
        cut_s=(round(first * step, 3), round((len(frames) - 1 - last) * step, 3)),
        gaps=gaps,
        share=round(sum(there[first : last + 1]) / (last + 1 - first), 3),
    )


def _gain(sound: _Signal, wanted: _Signal, block: _Block, length: int) -> float:
    """How much louder than the reference a block of it was heard."""
    said = wanted[block.at : block.at + length]
    here = sound[block.at + block.offset : block.at + block.offset + length]
    return abs(float(np.dot(here, said[: len(here)]))) / max(float(np.dot(said, said)), 1.0)


def _runs(values: list[bool]) -> list[tuple[int, int, bool]]:
    """Runs of equal values as (first, one past the last, value)."""
    edges = [0, *(i for i in range(1, len(values)) if values[i] != values[i - 1]), len(values)]
    return [(begin, end, values[begin]) for begin, end in itertools.pairwise(edges) if begin < end]


def _without_islands(runs: list[tuple[int, int, bool]]) -> list[tuple[int, int, bool]]:
    """The runs less what was heard for a moment only, far from the rest: unlike speech does that by chance."""
    kept: list[bool] = []
    for at, (begin, end, is_there) in enumerate(runs):
        before = at == 0 or runs[at - 1][1] - runs[at - 1][0] >= ISLAND_FRAMES
        after = at == len(runs) - 1 or runs[at + 1][1] - runs[at + 1][0] >= ISLAND_FRAMES
        island = is_there and end - begin < ISLAND_FRAMES and before and after
        kept += [is_there and not island] * (end - begin)
    return _runs(kept)


def _is_gap(silent: list[bool]) -> bool:
    longest = max((end - begin for begin, end, quiet in _runs(silent) if quiet), default=0)
    return longest >= GAP_FRAMES or len(silent) >= COVERED_FRAMES


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

    A row of short glides (100 ms each), two at once, between frequencies of 400 to 1300 and 1400 to 2600 Hz that are
    drawn from the SHA-256 of the name; -13 dBFS, so that G.711, GSM and a softphone's mixer pass it unharmed. With
    one tone at a time GSM's predictor overshoots: up to twelve times as loud, for a quarter of a second; of 540
    combinations of name, phase and loudness 3 had a gap there.
    """
    step = RATE // 10
    count = max(1, round(seconds * 10))
    drawn = b"".join(hashlib.sha256(f"{name}/{i}".encode()).digest() for i in range(count // 8 + 1))
    fade = np.minimum(1.0, np.minimum(np.arange(step), np.arange(step)[::-1]) / (0.005 * RATE))
    glides = []
    for i in range(count):
        low, low_end, high, high_end = (each / 255.0 for each in drawn[4 * i : 4 * i + 4])
        at_once = [(400 + 900 * low, 400 + 900 * low_end), (1400 + 1200 * high, 1400 + 1200 * high_end)]
        tones = [np.sin(2 * np.pi * np.cumsum(np.linspace(begin, end, step)) / RATE) for begin, end in at_once]
        glides.append(fade * (tones[0] + tones[1]) / np.sqrt(2))
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
    """Normalised cross-correlation (-1..1) of wanted with each window of sound."""
    if len(sound) > 2 * len(wanted):  # from about there on the FFT is faster
        # What wraps round at this size falls on lags after the last that is asked for.
        size = _fast_size(len(sound))
        product = np.fft.rfft(sound, size) * np.conj(np.fft.rfft(wanted, size))
        raw = np.fft.irfft(product, size)[: len(sound) - len(wanted) + 1]
    else:
        raw = np.correlate(sound, wanted, mode="valid")
    norm = np.sqrt(_energies(sound, len(wanted)) * max(float(np.sum(wanted**2)), 1.0))
    likeness: _Signal = raw / norm
    return likeness


def _half_sample_later(signal: _Signal) -> _Signal:
    """The same sound as a softphone that resamples hands it on: its clock's grid falls between ours."""
    size = _fast_size(len(signal))
    spectrum = np.fft.rfft(signal, size)
    turn = np.exp(-1j * np.pi * np.arange(len(spectrum)) / size)
    later: _Signal = np.fft.irfft(spectrum * turn, size)[: len(signal)]
    return later


def _fast_size(least: int) -> int:
    """The next number without a prime factor above 5: the FFT of a prime size takes several times as long."""
    sizes = (2**a * 3**b * 5**c for a, b, c in itertools.product(range(22), range(5), range(5)))
    return int(min(size for size in sizes if size >= least))


def _best_lag(sound: _Signal, wanted: _Signal) -> int:
    return int(np.argmax(_correlate(sound, wanted)))


def _compare(sound: _Signal, wanted: _Signal) -> tuple[int, float]:
    """Where in sound this block lies best, and how alike they are there."""
    likeness = _correlate(sound, wanted)
    at = int(np.argmax(likeness))
    return at, float(likeness[at])
