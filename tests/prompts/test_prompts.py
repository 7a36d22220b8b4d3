"""Tests of pbxguard.prompts: the audio that is checked in, the site's own, and the script that makes it."""

import shutil

import numpy as np
import pytest

from pbxguard import prompts
from pbxguard.errors import BadConfig, LabUnavailable, UnknownName
from pbxguard.lab import heard
from pbxguard.prompts import make
from pbxguard.screening.call import Reason

FILES = [(name, language) for name in prompts.names() for language in prompts.LANGUAGES]
needs_espeak = pytest.mark.skipif(
    shutil.which("espeak-ng") is None,
    reason="espeak-ng, which only who changes a text needs, is not installed; all but the speaking is tested without",
)


def copy_of_all(directory):
    """The package's prompts, in a directory of the site."""
    for language in prompts.LANGUAGES:
        shutil.copytree(prompts.PROMPT_DIR / language, directory / language)
    return directory


def assert_unlike(directory):
    """No two prompts of a language are alike to the ear that tells them apart in the lab."""
    for language in prompts.LANGUAGES:
        made = {name: heard.load_wav(prompts.path(name, language, directory)) for name in prompts.names()}
        for name, samples in made.items():
            others = {other: reference for other, reference in made.items() if other != name}
            assert heard.best(samples, others)[1].score <= 0.3, name


def test_names_are_reasons():
    """Every prompt is named like the reason that plays it."""
    assert set(prompts.names()) == {
        Reason.INTL_DEFAULT_OFF,
        Reason.SUBSCRIBER_BLOCKLIST,
        Reason.SYSTEM_BLOCKLIST,
        Reason.CLI_MISSING,
        Reason.GUARD_FAILED,
    }


def test_checked_in_prompts_are_complete(capsys):
    """Both languages are there for every prompt, 8 kHz, 16 bit, mono, 4 to 7 s: what --check says."""
    assert make.main(["--check"]) == 0
    assert "all well" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "language"), FILES)
def test_edges_and_peaks(name, language):
    """No prompt begins or ends with more than 150 ms of silence, and none is clipped."""
    level = np.abs(heard.load_wav(prompts.path(name, language)).astype(int))
    loud = np.flatnonzero(level > 0.02 * level.max())
    assert loud[0] <= 0.15 * 8000
    assert len(level) - loud[-1] <= 0.15 * 8000
    assert level.max() < 32000


def test_prompts_are_equally_loud():
    """The loudest and the quietest prompt differ by less than 2 dB."""
    loudness = [
        20 * np.log10(np.sqrt(np.mean(heard.load_wav(prompts.path(*file)).astype(float) ** 2))) for file in FILES
    ]
    assert max(loudness) - min(loudness) < 2.0


def test_texts_have_what_is_spoken():
    """Every prompt has Chinese and English words, and Pinyin of one syllable for each Chinese character."""
    for name, text in prompts.texts().items():
        assert set(text) == {"zh", "en", "pinyin"}, name
        syllables = sum(character.isdigit() for character in text["pinyin"])
        spoken = sum(character.isdigit() or "\u4e00" <= character <= "\u9fff" for character in text["zh"])
        assert syllables == spoken, name


def test_unknown_prompt_is_named():
    """A prompt or language that does not exist is refused by name, never turned into a path."""
    with pytest.raises(UnknownName, match="etc"):
        prompts.path("../../etc/passwd", "zh")
    with pytest.raises(UnknownName, match="fr"):
        prompts.path("cli_missing", "fr")


def test_site_replaces_all_prompts(tmp_path):
    """A complete directory of the site is used; without one, the package's own is."""
    assert prompts.prompt_dir(None) == prompts.PROMPT_DIR
    assert prompts.prompt_dir(copy_of_all(tmp_path)) == tmp_path


def test_incomplete_site_is_refused(tmp_path):
    """A site's directory with a missing, foreign or empty file is one clear line that names it."""
    directory = copy_of_all(tmp_path)
    file = directory / "en" / "cli_missing.wav"
    file.unlink()
    with pytest.raises(BadConfig, match=r"en/cli_missing\.wav: No such file"):
        prompts.prompt_dir(directory)
    file.write_bytes(b"ID3 an MP3 file")
    with pytest.raises(BadConfig, match="not a PCM WAV"):
        prompts.prompt_dir(directory)
    heard.write_wav(file, heard.marker("x"), rate=16000)
    with pytest.raises(BadConfig, match="16000 Hz"):
        prompts.prompt_dir(directory)
    heard.write_wav(file, np.zeros(0, np.int16))
    with pytest.raises(BadConfig, match=r"lasts 0\.0 s"):
        prompts.prompt_dir(directory)
    heard.write_wav(file, heard.marker("x"))
    file.rename(directory / "zh" / "guard_failed.wav")
    with pytest.raises(BadConfig) as error:
        prompts.prompt_dir(directory)
    assert "\n" not in str(error.value)


def test_check_says_what_is_wrong(tmp_path, capsys):
    """--check of an empty directory names every file that is missing, and fails."""
    assert make.main(["--check", "--into", str(tmp_path)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == len(FILES)


def test_checked_in_prompts_are_unlike():
    """No two of the prompts that are checked in are alike."""
    assert_unlike(prompts.PROMPT_DIR)


@pytest.mark.parametrize(("name", "language"), FILES)
def test_speech_becomes_a_prompt(name, language):
    """Quiet speech at another rate, with long silence around it, becomes the prompt that is checked in."""
    prompt = heard.load_wav(prompts.path(name, language))
    moments = np.arange(0, len(prompt), 8000 / 22050)
    silence = np.zeros(22050)
    speech = np.concatenate([silence, np.interp(moments, np.arange(len(prompt)), prompt) / 32768 / 3, silence])

    made = make.level(make.trim(make.resample(speech, 22050)))

    assert abs(len(made) - len(prompt)) < 0.1 * 8000
    assert heard.match(made, prompt).score >= 0.9
    assert abs(20 * np.log10(np.std(made.astype(float)) / np.std(prompt.astype(float)))) < 1.0


def test_without_espeak_one_line_says_what_to_install(tmp_path, monkeypatch):
    """Where espeak-ng is not installed, the script names the package and writes nothing."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabUnavailable, match="apt-get install espeak-ng"):
        make.make("cli_missing", "zh", tmp_path)
    assert list(tmp_path.iterdir()) == []


@needs_espeak
def test_make_makes_every_prompt(tmp_path):
    """The script re-creates every prompt in a form that a PBX plays, and no two of a language are alike."""
    for name, language in FILES:
        make.make(name, language, tmp_path)
    assert prompts.problems(tmp_path) == []
    assert_unlike(tmp_path)
