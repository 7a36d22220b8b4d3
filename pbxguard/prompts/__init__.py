"""The rejection prompts: which exist, where a PBX finds them, and whether a directory of them is complete.

Knows files and their format. Does not know when a prompt is played (``treatment``) nor how it is made
(``make``).
"""

import tomllib
import wave
from functools import cache
from pathlib import Path

from pbxguard.errors import BadConfig, UnknownName

__all__ = ["LANGUAGES", "PROMPT_DIR", "names", "path", "problems", "prompt_dir", "texts"]

PROMPT_DIR = Path(__file__).resolve().parent
LANGUAGES = ("zh", "en")

# 8 kHz, 16 bit, mono, linear PCM: what Asterisk (format_wav) and FreeSWITCH (mod_sndfile) play as it is
RATE = 8000
# a refused caller waits no longer, and a prompt is early media that nobody pays for
LONGEST_S = 20.0


@cache
def texts() -> dict[str, dict[str, str]]:
    """The words of each prompt by name: ``zh``, ``en`` and ``pinyin``, from texts.toml."""
    return tomllib.loads((PROMPT_DIR / "texts.toml").read_text(encoding="utf-8"))


def names() -> tuple[str, ...]:
    """The names of all prompts; each is the name of a ``Reason``."""
    return tuple(texts())


def path(name: str, language: str, directory: Path = PROMPT_DIR) -> Path:
    """The file of one prompt, ``<directory>/<language>/<name>.wav``; it need not exist in a site's directory.

    Raises:
        UnknownName: There is no prompt of that name, or none in that language.
    """
    if name not in names():
        raise UnknownName(f"prompt {name!r} is not known; there are: {', '.join(names())}")
    if language not in LANGUAGES:
        raise UnknownName(f"prompt language {language!r} is not known; there are: {', '.join(LANGUAGES)}")
    return directory / language / f"{name}.wav"


def prompt_dir(site_dir: Path | None) -> Path:
    """The directory that the PBX plays from: the site's own where one is set, else the one of this package.

    A site replaces all prompts or none, because a caller who hears one half of them in another voice, or
    silence where a file is missing, cannot tell a refusal from a fault.

    Raises:
        BadConfig: The site's directory lacks a prompt, or one has a format that a PBX cannot play as it is.
    """
    if site_dir is None:
        return PROMPT_DIR
    found = problems(site_dir)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise BadConfig(
            f"prompts of the site: {found[0]}{more};"
            " supply WAV files of 8000 Hz, 16 bit, mono, or take the setting out"
        )
    return site_dir


def problems(directory: Path, *, shortest_s: float = 0.1, longest_s: float = LONGEST_S) -> list[str]:
    """What is wrong with the prompts in a directory, one line a file; empty where all is well."""
    lines = []
    for name in names():
        for language in LANGUAGES:
            file = path(name, language, directory)
            what = _problem(file, shortest_s, longest_s)
            if what:
                lines.append(f"{file}: {what}")
    return lines


def _problem(file: Path, shortest_s: float, longest_s: float) -> str | None:
    try:
        with wave.open(str(file), "rb") as wav:
            form = (wav.getframerate(), wav.getsampwidth() * 8, wav.getnchannels())
            seconds = wav.getnframes() / wav.getframerate()
    except OSError as exc:
        return exc.strerror or "cannot be read"
    except (wave.Error, EOFError) as exc:
        return f"not a PCM WAV file ({exc})"
    if form != (RATE, 16, 1):
        return f"is {form[0]} Hz, {form[1]} bit, {form[2]} channel(s)"
    if not shortest_s <= seconds <= longest_s:
        return f"lasts {seconds:.1f} s, not {shortest_s:g} to {longest_s:g} s"
    return None
