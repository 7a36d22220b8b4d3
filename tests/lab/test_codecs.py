"""Tests of pbxguard.lab.codecs and of how the wire uses them: real encoders, lost packets, hostile payloads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lossy import CODECS, lose, payloads, stream

from pbxguard.lab import codecs, heard

SOUND = heard.marker("codec", seconds=2.0)


@pytest.mark.parametrize("codec", CODECS)
def test_what_was_coded_is_decoded(codec):
    """A sound through each codec has its length and is recognised, and order of arrival does not matter."""
    sent = stream(SOUND, codec)
    assert sent.decoded
    assert len(sent.samples()) == len(SOUND)
    assert heard.match(sent.samples(), SOUND).score >= 0.9
    shuffled = type(sent)(7, sent.source, sent.destination, sent.payload_type, codec,
                          (sent.packets[0], *reversed(sent.packets[1:])))  # fmt: skip
    assert np.array_equal(shuffled.samples(), sent.samples())


@pytest.mark.parametrize("codec", CODECS)
def test_lost_packets_are_silence_at_their_place(codec):
    """What was lost is silent, what follows stays where it was."""
    received = lose(stream(SOUND, codec), 0.1, 1)
    there = {(packet.timestamp - 7000) // 160 for packet in received.packets}
    sound = received.samples()
    missing = [i for i in range(max(there)) if i not in there]
    assert missing
    assert not any(sound[i * 160 : (i + 1) * 160].any() for i in missing)


def test_gsm_frames_without_signature_are_left_out():
    """33 bytes that no GSM encoder wrote, and other lengths, give no sample."""
    decoder = codecs.decoder("GSM")
    assert decoder.length(payloads(SOUND, "GSM")[0]) == 160
    assert decoder.length(payloads(SOUND, "GSM")[0] * 2) == 320
    assert decoder.length(b"\x00" * 33) == decoder.length(b"\xd0" * 32) == decoder.length(b"") == 0


def test_unknown_codec_has_no_decoder():
    """G.729 is not decoded, and not guessed."""
    assert codecs.decoder("G729") is None


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(CODECS)), st.lists(st.binary(max_size=70), max_size=20))
def test_any_payload_is_survived(codec, given_payloads):
    """Whatever bytes come as payload, a decoder gives as many samples as it says."""
    decoder = codecs.decoder(codec)
    signed = [b"\xd5" + payload[:32].ljust(32, b"\0") if codec == "GSM" else payload for payload in given_payloads]
    kept = [payload for payload in signed if decoder.length(payload)]
    assert len(decoder.decode(kept)) == sum(map(decoder.length, kept))


def test_opus_is_small_and_plays_back():
    """Twelve seconds become less than 45 kB, and are still recognised."""
    import io

    import soundfile

    prompt = np.tile(SOUND, 6)
    data = codecs.ogg_opus(prompt)
    assert len(data) < 45_000
    back, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    assert rate == 8000
    assert heard.match(back, SOUND).score >= 0.8
