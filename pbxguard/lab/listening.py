"""Says in one word what a party heard: the right sound whole, cut off or with gaps, a wrong one, or none at all.

Knows samples and named references (prompts, markers); does not know calls, nor what ought to happen in one.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from pbxguard.lab import heard
from pbxguard.lab.heard import FRAME, RATE, Match, Samples

__all__ = ["BEGUN", "HEARD", "Heard", "Part", "Sound", "listen"]

#: A reference with this score was heard. GSM full rate with 5 % loss leaves 0.84 or more of the right one, a wrong
#: one has 0.06 at most; what is cut off or has gaps is told by its parts, not by the score.
HEARD = 0.75
#: A reference of which fewer frames (20 ms) were heard has gaps, however short each of them is; 5 % loss leaves 0.88
#: or more. The score alone does not tell: a sound with every other packet lost correlates by 0.71.
KEPT = 0.8
#: Something of a reference that was cut short shows at least this score.
BEGUN = heard.BEGUN
#: Seconds of sound that may be missing at an end: half a word, and the delay with which a phone cuts in.
CUT_S = 0.25

# A line is silent when fewer of its frames (20 ms) than this are louder than this RMS: a click is no sound, and a
# G.722 decoder that missed packets of silence renders up to 40.
_SOUNDING_FRAMES, _AUDIBLE_RMS = 5, 50.0
# Steady and without pitch: eight of ten frames of noise lie within these dB, and its mean spectrum (200 to 3400 Hz)
# is this flat (1 is white). Speech varies by 30 dB, a row of glides is flat to 0.07 and a tone to less than 0.001.
_STEADY_DB, _FLAT = 6.0, 0.15


class Sound(StrEnum):
    """What was heard, in one word."""

    WHOLE = "whole"  # what was wanted, from its beginning to its end
    CUT = "cut"  # its beginning or its end is missing
    GAPS = "gaps"  # it is whole at both ends, with gaps of 0.1 s or more between, or many short ones
    WRONG = "wrong"  # another reference than what was wanted
    NOISE = "noise"  # steady sound without pitch
    OTHER = "other"  # sound that is no reference and no noise: ringback, music, somebody's speech
    SILENCE = "silence"  # packets that hold no sound
    NOTHING = "nothing"  # not even packets


SOUND_WORDS: Mapping[str, str] = {
    Sound.WHOLE: "what it should be, whole",
    Sound.CUT: "what it should be, cut off",
    Sound.GAPS: "what it should be, with gaps",
    Sound.WRONG: "another prompt than the guard chose",
    Sound.NOISE: "noise",
    Sound.OTHER: "a sound that is no prompt and no marker",
    Sound.SILENCE: "silence",
    Sound.NOTHING: "no audio at all",
}


@dataclass(frozen=True, slots=True)
class Part:
    """One reference that was heard, whole or in part.

    Attributes:
        name: Of the reference.
        sound: ``WHOLE``, ``CUT`` or ``GAPS``.
        match: How well, from where to where, with which gaps.
        length_s: Of the whole reference.
    """

    name: str
    sound: Sound
    match: Match
    length_s: float


@dataclass(frozen=True, slots=True)
class Heard:
    """What one party heard.

    Attributes:
        sound: In one word.
        parts: Every reference that was heard, in order of time.
        score: Of the wanted reference, or else of the best one; of several wanted, the least.
        other: Best score of any reference that was not wanted.
        span: From where to where the wanted ones, or else the best one, were heard, in seconds; None for neither.
        scores: Of every reference, by name.
    """

    sound: Sound
    parts: tuple[Part, ...] = ()
    score: float = 0.0
    other: float = 0.0
    span: tuple[float, float] | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


def listen(sound: Samples, references: Mapping[str, Samples], wanted: Collection[str] = ()) -> Heard:
    """Say what is contained in *sound*.

    Args:
        sound: 8 kHz int16 samples; may be empty.
        references: Every sound that may be there, by name.
        wanted: Names of those that ought to be there, one after the other; without any, the best one counts.
    """
    if not len(sound):
        return Heard(Sound.NOTHING)
    matches = {name: heard.match(sound, reference) for name, reference in references.items()}
    parts = tuple(
        Part(name, _extent(match), match, len(references[name]) / RATE)
        for name, match in sorted(matches.items(), key=lambda item: item[1].span)
        if match.score >= BEGUN and match.span[1] > 0
    )
    names = {part.name for part in parts}
    best = max(parts, key=lambda part: part.match.score, default=None)
    scores = {name: match.score for name, match in matches.items()}
    asked = tuple(wanted) or ((best.name,) if best else ())
    ours = [part for part in parts if part.name in asked]
    other = max((score for name, score in scores.items() if name not in asked), default=0.0)
    if not ours:
        found = Sound.WRONG if best else _background(sound)
        span = best.match.span if best else None
        return Heard(found, parts, best.match.score if best else 0.0, other, span, scores)
    # In this order: a prompt that ends early was not heard, however few gaps the rest has.
    sounds = [part.sound for part in ours] + ([Sound.CUT] if not names.issuperset(asked) else [])
    worst = next(each for each in (Sound.CUT, Sound.GAPS, Sound.WHOLE) if each in sounds)
    span = (min(part.match.span[0] for part in ours), max(part.match.span[1] for part in ours))
    return Heard(worst, parts, min(part.match.score for part in ours), other, span, scores)


def _extent(match: Match) -> Sound:
    if max(match.cut_s) >= CUT_S:
        return Sound.CUT
    return Sound.GAPS if match.gaps or match.score < HEARD or match.share < KEPT else Sound.WHOLE


def _background(sound: Samples) -> Sound:
    """What sound is that is no reference."""
    frames = np.asarray(sound[: len(sound) // FRAME * FRAME], np.float64).reshape(-1, FRAME)
    if not len(frames):
        return Sound.SILENCE
    levels = np.sqrt(np.mean((frames - frames.mean()) ** 2, axis=1))
    sounding = frames[levels > _AUDIBLE_RMS]
    if len(sounding) < _SOUNDING_FRAMES:
        return Sound.SILENCE
    low, high = np.percentile(20 * np.log10(levels[levels > _AUDIBLE_RMS]), [10, 90])
    power = np.mean(np.abs(np.fft.rfft(sounding * np.hanning(FRAME), axis=1)) ** 2, axis=0)
    band = power[(np.fft.rfftfreq(FRAME, 1 / RATE) >= 200) & (np.fft.rfftfreq(FRAME, 1 / RATE) <= 3400)] + 1e-9
    flatness = float(np.exp(np.mean(np.log(band))) / np.mean(band))
    return Sound.NOISE if high - low < _STEADY_DB and flatness > _FLAT else Sound.OTHER
