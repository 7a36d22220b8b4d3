"""Makes the prompts from texts.toml with espeak-ng; run when a text changes, never at run time.

    python -m pbxguard.prompts.make            # re-create every file
    python -m pbxguard.prompts.make --check    # say whether all are there, in both languages, and well-formed

Needs espeak-ng (a Debian package) and numpy (``pip install 'pbxguard[lab]'``).
"""

import argparse
import io
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pbxguard.errors import LabUnavailable, PbxguardError
from pbxguard.prompts import LANGUAGES, PROMPT_DIR, RATE, path, problems, texts

# language -> (key of the text that is spoken, espeak-ng voice, words a minute). The speeds are those at which
# a recorded network announcement speaks (4 to 5 syllables a second); espeak-ng counts Pinyin slower.
VOICES = {"zh": ("pinyin", "cmn-latn-pinyin", 250), "en": ("en", "en-us", 210)}

# A caller needs the time to understand, and a network does not lend its channels for longer.
SHORTEST_S, LONGEST_S = 4.0, 7.0
# Loudness: -20 dBFS RMS while speaking, as network announcements are; peaks stay below -1 dBFS.
RMS, PEAK = 10 ** (-20 / 20), 10 ** (-1 / 20)
EDGE_S = 0.1
# G.711 lines pass 300 to 3400 Hz; a gentle end of the band avoids ringing at the new Nyquist frequency
CUT_HZ, STOP_HZ = 3400.0, 3900.0

Samples = npt.NDArray[np.float64]


def speak(text: str, voice: str, words_a_minute: int) -> tuple[Samples, int]:
    """The text as samples in -1..1 and their rate in Hz.

    Raises:
        LabUnavailable: espeak-ng is not installed, or cannot speak this.
    """
    program = shutil.which("espeak-ng")
    if program is None:
        raise LabUnavailable("espeak-ng is not installed; on Debian: apt-get install espeak-ng")
    done = subprocess.run(
        [program, "-v", voice, "-s", str(words_a_minute), "--stdout", "--", text],
        capture_output=True,
        check=False,
    )
    if done.returncode or not done.stdout.startswith(b"RIFF"):
        said = done.stderr.decode(errors="replace")[-200:]
        raise LabUnavailable(f"espeak-ng failed with voice {voice}: {said!r}")
    # a stream's header has no true length: wave takes it, and reads to the end of the data
    with wave.open(io.BytesIO(done.stdout), "rb") as wav:
        frames = wav.readframes(len(done.stdout))
        return np.frombuffer(frames[: len(frames) // 2 * 2], dtype="<i2") / 32768.0, wav.getframerate()


def resample(samples: Samples, rate: int, to: int = RATE) -> Samples:
    """The same sound at another, lower rate; low-passed to the telephone band (one FFT over the whole)."""
    length = round(len(samples) * to / rate)
    spectrum = np.fft.rfft(samples)[: length // 2 + 1]
    frequency = np.arange(len(spectrum)) * rate / len(samples)
    roll_off = 0.5 + 0.5 * np.cos(np.pi * np.clip((frequency - CUT_HZ) / (STOP_HZ - CUT_HZ), 0.0, 1.0))
    return np.fft.irfft(spectrum * roll_off, length) * (length / len(samples))


def trim(samples: Samples) -> Samples:
    """The sound with 100 ms of silence before and after it."""
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.max(np.abs(samples)))
    edge = np.zeros(round(EDGE_S * RATE))
    return np.concatenate([edge, samples[loud[0] : loud[-1] + 1], edge])


def level(samples: Samples) -> npt.NDArray[np.int16]:
    """The sound at the common loudness, 16 bit. Pauses do not count; a peak is never clipped."""
    speech = samples[np.abs(samples) > 0.02 * np.max(np.abs(samples))]
    gain = min(RMS / float(np.sqrt(np.mean(speech**2))), PEAK / float(np.max(np.abs(samples))))
    return np.round(samples * gain * 32767).astype(np.int16)


def make(name: str, language: str, directory: Path = PROMPT_DIR) -> Path:
    """Write one prompt and return its file.

    Raises:
        LabUnavailable: see ``speak``.
    """
    key, voice, words_a_minute = VOICES[language]
    samples, rate = speak(texts()[name][key], voice, words_a_minute)
    file = path(name, language, directory)
    file.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(file), "wb") as wav:
        wav.setparams((1, 2, RATE, 0, "NONE", "not compressed"))
        wav.writeframes(level(trim(resample(samples, rate))).astype("<i2").tobytes())
    return file


def main(argv: list[str] | None = None) -> int:
    """Command line; exit code 0, or 1 where a prompt is missing or not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m pbxguard.prompts.make")
    parser.add_argument("--check", action="store_true", help="make nothing, only say what is wrong")
    parser.add_argument("--into", type=Path, default=PROMPT_DIR, help="a directory other than the package's")
    options = parser.parse_args(argv)
    try:
        if not options.check:
            for name in texts():
                for language in LANGUAGES:
                    make(name, language, options.into)
    except PbxguardError as exc:
        sys.stderr.write(f"{exc}\n")
        return exc.exit_code
    found = problems(options.into, shortest_s=SHORTEST_S, longest_s=LONGEST_S)
    for line in found:
        sys.stderr.write(f"{line}\n")
    if not found:
        sys.stdout.write(f"{len(texts())} prompts in {', '.join(LANGUAGES)}: all well\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
