"""Tests of pbxguard.lab.heard: the right prompt scores high after a telephone line, all else scores low."""

import itertools
import time

import numpy as np
import pytest

from pbxguard import prompts
from pbxguard.errors import BadInput
from pbxguard.lab import heard
from pbxguard.lab.wire import decode, encode

PCMU, PCMA = 0, 8
REFERENCES = {
    f"{language}/{name}": heard.load_wav(prompts.path(name, language))
    for language in prompts.LANGUAGES
    for name in prompts.names()
}
MARKERS = {f"marker {name}": heard.marker(name) for name in ("caller", "callee", "a", "b", "c", "d")}
ALL = REFERENCES | MARKERS


def through(samples, payload_type=PCMA):
    """The sound after a G.711 line."""
    return decode(encode(samples, payload_type), payload_type)


def silence(seconds):
    """Samples of nothing."""
    return np.zeros(round(seconds * 8000), np.int16)


def with_loss(samples, share, seed):
    """The sound with this share of its 20 ms packets missing, as silence."""
    dice = np.random.default_rng(seed)
    out = samples.copy()
    for at in range(0, len(out), 160):
        if dice.random() < share:
            out[at : at + 160] = 0
    return out


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("payload_type", [PCMA, PCMU])
def test_right_sound_through_g711(name, payload_type):
    """Every prompt and marker scores 0.95 or more after PCMA or PCMU, and is found at its place."""
    line = np.concatenate([silence(2), through(ALL[name], payload_type), silence(1)])
    found = heard.match(line, ALL[name])
    assert found.score >= 0.95
    assert found.start_s == pytest.approx(2.0, abs=0.001)
    assert found.length_s >= len(ALL[name]) / 8000 - 0.6


def test_wrong_sound_scores_low():
    """No prompt or marker is taken for another: all pairs score 0.15 or less."""
    coded = {name: through(samples) for name, samples in ALL.items()}
    scores = {
        (said, asked): heard.match(coded[said], ALL[asked]).score for said, asked in itertools.permutations(ALL, 2)
    }
    worst = max(scores, key=lambda pair: scores[pair])
    assert scores[worst] <= 0.15, worst


@pytest.mark.parametrize("name", ALL)
def test_best_names_the_right_one(name):
    """Among all prompts and markers the one that was played is named, even with packets lost."""
    assert heard.best(with_loss(through(ALL[name]), 0.05, 1), ALL)[0] == name


@pytest.mark.parametrize("name", REFERENCES)
def test_packet_loss(name):
    """With 5 % of the packets lost the right prompt still scores 0.8 or more, whichever packets they are."""
    scores = [
        heard.match(with_loss(through(REFERENCES[name]), 0.05, seed), REFERENCES[name]).score for seed in range(10)
    ]
    assert min(scores) >= 0.8


@pytest.mark.parametrize("name", REFERENCES)
def test_cut_off_prompt(name):
    """Half a prompt, the first or the second, scores about a half: it cannot pass for the whole."""
    samples = REFERENCES[name]
    half = len(samples) // 2
    for part in (samples[:half], samples[half:]):
        assert 0.35 <= heard.match(through(part), samples).score <= 0.65


def test_beginning_cut_off_is_told():
    """A prompt whose first half was not heard has a negative start, by just that half."""
    samples = REFERENCES["zh/intl_default_off"]
    found = heard.match(samples[16000:], samples)
    assert found.start_s == pytest.approx(-2.0, abs=0.001)


def test_nothing_is_nothing():
    """Silence, the hiss of coded silence, noise, ringback, an empty and a tiny array match no prompt."""
    dice = np.random.default_rng(7)
    clock = np.arange(20 * 8000) / 8000
    sounds = {
        "empty": silence(0),
        "one sample": np.ones(1, np.int16),
        "silence": silence(20),
        "coded silence": through(silence(20)),
        "constant": np.full(80000, -32768, np.int16),
        "noise": (dice.standard_normal(160000) * 3000).clip(-32768, 32767).astype(np.int16),
        "hiss": (dice.standard_normal(160000) * 10).astype(np.int16),
        "ringback": np.where(clock % 5 < 1, 8000 * np.sin(2 * np.pi * 450 * clock), 0).astype(np.int16),
    }
    for what, samples in sounds.items():
        for name, reference in ALL.items():
            assert heard.match(samples, reference).score <= 0.1, (what, name)
    assert heard.best(silence(3), ALL) == ("", heard.Match(0.0, 0.0, 0.0))
    assert heard.match(REFERENCES["zh/cli_missing"], silence(3)).score == 0.0


def test_prompt_in_noise_after_ringback():
    """A prompt after ringback, quieter than it and with line noise, is found where it begins."""
    samples = REFERENCES["en/system_blocklist"]
    clock = np.arange(24000) / 8000
    ringback = (12000 * np.sin(2 * np.pi * 450 * clock)).astype(np.int16)
    line = np.concatenate([ringback, silence(0.5), (samples * 0.25).astype(np.int16), silence(1)])
    line = line + np.random.default_rng(3).integers(-30, 30, len(line)).astype(np.int16)
    found = heard.match(through(line), samples)
    assert found.score >= 0.95
    assert found.start_s == pytest.approx(3.5, abs=0.001)


@pytest.mark.parametrize("slip", [80, 160, 320, 480, 640])
def test_slipped_timing(slip):
    """A player that pauses for 10, 20 or 40 ms in the middle of a prompt played it whole all the same."""
    samples = REFERENCES["zh/guard_failed"]
    line = np.concatenate([samples[:20000], np.zeros(slip, np.int16), samples[20000:]])
    assert heard.match(through(line), samples).score >= 0.9


@pytest.mark.parametrize("name", ["marker caller", "zh/guard_failed"])
def test_resampled_by_a_softphone(name):
    """A softphone whose clock grid lies half a sample off hands the same sound on."""
    samples = ALL[name].astype(np.float64)
    spectrum = np.fft.rfft(samples) * np.exp(-1j * np.pi * np.arange(len(samples) // 2 + 1) / len(samples))
    line = np.fft.irfft(spectrum, len(samples)).round().clip(-32768, 32767).astype(np.int16)
    assert heard.match(through(line), ALL[name]).score >= 0.95


def test_quick_and_bounded():
    """20 s of sound against one prompt takes far less than a second, and an hour is cut, not computed."""
    noise = np.random.default_rng(1).integers(-9000, 9000, 3600 * 8000).astype(np.int16)
    reference = REFERENCES["zh/intl_default_off"]
    begin = time.process_time()
    heard.match(noise[: 20 * 8000], reference)
    assert time.process_time() - begin < 1.0
    begin = time.process_time()
    heard.match(noise, noise)
    assert time.process_time() - begin < 10.0


def test_marker_is_of_its_name_and_length():
    """A marker is the same for the same name, differs for another, and lasts as long as asked."""
    assert np.array_equal(heard.marker("x"), heard.marker("x"))
    assert not np.array_equal(heard.marker("x"), heard.marker("y"))
    assert len(heard.marker("x", seconds=1.5)) == 12000
    assert np.abs(heard.marker("x", seconds=10).astype(int)).max() < 32767


def test_wav_round_trip(tmp_path):
    """What is written is read, sample for sample."""
    heard.write_wav(tmp_path / "m.wav", heard.marker("m"))
    assert np.array_equal(heard.load_wav(tmp_path / "m.wav"), heard.marker("m"))


def test_wav_of_another_kind_is_named(tmp_path):
    """A missing file, one that is no WAV and one of another rate are named with the remedy."""
    file = tmp_path / "m.wav"
    with pytest.raises(BadInput, match=r"m\.wav"):
        heard.load_wav(file)
    file.write_bytes(b"RIFF and nothing")
    with pytest.raises(BadInput, match="convert it"):
        heard.load_wav(file)
    heard.write_wav(file, heard.marker("m"), rate=16000)
    with pytest.raises(BadInput, match="16000 Hz"):
        heard.load_wav(file)
