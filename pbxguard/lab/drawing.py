"""Lays out a call's messages as a drawn ladder, and its audio as a waveform: numbers for a template to draw.

Knows messages, samples and places on a page; does not know HTML, nor what ought to have happened.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pbxguard.lab.heard import RATE, Samples
from pbxguard.lab.ladder import actor_name, actors_of, label, note, printable
from pbxguard.lab.wire import RtpStream, SipMessage

__all__ = ["Arrow", "Ladder", "Wave", "draw_ladder", "draw_wave", "message_text"]

MAX_ARROWS = 200
#: Characters of one message that are shown; the capture has the rest.
MAX_TEXT = 6000
LINE_WIDTH = 400

LEFT, APART, ROW, TOP = 148, 236, 34, 44
WAVE_WIDTH, WAVE_HEIGHT = 720, 96
_LOUDEST = 32768


@dataclass(frozen=True, slots=True)
class Arrow:
    """One message, or one stream of packets, as an arrow.

    Attributes:
        kind: ``request``, ``provisional``, ``success``, ``failure`` or ``media``.
        says: In words, for who cannot see it.
        text: The whole message, or "" for media.
        x1, x2, y: Where it begins, where its head is, and how far down; x1 == x2 for a message to oneself.
    """

    kind: str
    time: str
    label: str
    says: str
    text: str
    x1: int
    x2: int
    y: int


@dataclass(frozen=True, slots=True)
class Ladder:
    """A drawn ladder: actors as (name, x), arrows from top to bottom."""

    width: int
    height: int
    actors: tuple[tuple[str, int], ...]
    arrows: tuple[Arrow, ...]
    more: int


@dataclass(frozen=True, slots=True)
class Wave:
    """Audio as an outline.

    Attributes:
        path: Outline for an SVG path.
        seconds: How long it is.
        marks: Spans as (kind, x, width, words).
    """

    path: str
    seconds: float
    marks: tuple[tuple[str, float, float, str], ...]
    ticks: tuple[tuple[float, str], ...]


def draw_ladder(
    messages: Sequence[SipMessage], names: Mapping[str, str], streams: Sequence[RtpStream] = ()
) -> Ladder | None:
    """Place the messages of a call, and the audio between them; None where there is no message."""
    if not messages:
        return None
    begin = messages[0].at
    shown = messages[:MAX_ARROWS]
    actors = actors_of(shown, names)
    column = {name: LEFT + at * APART for at, name in enumerate(actors)}
    events: list[tuple[float, SipMessage | RtpStream]] = [(message.at, message) for message in shown]
    events += [(stream.at, stream) for stream in streams]
    arrows: list[Arrow] = []
    for event in (each for _, each in sorted(events, key=lambda each: each[0])):
        source, destination = (actor_name(a, names) for a in (event.source, event.destination))
        if source not in column or destination not in column:
            continue
        time = f"{(event.at - begin) * 1000:.1f}"
        what = label(event) if isinstance(event, SipMessage) else _stream_label(event)
        extra = note(event) if isinstance(event, SipMessage) else ""
        arrows.append(
            Arrow(
                kind=_kind(event) if isinstance(event, SipMessage) else "media",
                time=time,
                label=what,
                says=f"{time} ms, {source} to {destination}: {what}" + (f", {extra}" if extra else ""),
                text=message_text(event) if isinstance(event, SipMessage) else "",
                x1=column[source],
                x2=column[destination],
                y=TOP + ROW * (len(arrows) + 1),
            )
        )
    width = LEFT + APART * (max(len(actors), 2) - 1) + 100
    return Ladder(
        width, TOP + ROW * (len(arrows) + 1), tuple(column.items()), tuple(arrows), len(messages) - len(shown)
    )


def message_text(message: SipMessage) -> str:
    """The message as text that shows every character that does not simply print as its code."""
    lines = [message.first_line, *(f"{name}: {value}" for name, value in message.headers), ""]
    lines += message.body[:MAX_TEXT].decode("utf-8", "backslashreplace").replace("\r\n", "\n").split("\n")
    text = "\n".join(printable(line, LINE_WIDTH) for line in lines).rstrip()
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "\n…"


def draw_wave(samples: Samples, spans: Sequence[tuple[str, float, float, str]]) -> Wave | None:
    """Place the outline of what was heard and the spans (kind, from, to in seconds, words) on it."""
    if not len(samples):
        return None
    seconds = len(samples) / RATE
    columns = min(WAVE_WIDTH // 2, len(samples))
    wide = np.asarray(samples, np.int32)
    edges = np.linspace(0, len(samples), columns + 1).astype(int)[:-1]
    # A telephone's speech is at -20 dBFS; drawn to the loudest it has, so that it can be seen.
    scale = 0.8 * WAVE_HEIGHT / 2 / max(float(np.abs(wide).max()), _LOUDEST / 8)
    high, low = (np.rint(WAVE_HEIGHT / 2 - f.reduceat(wide, edges) * scale) for f in (np.maximum, np.minimum))
    path = "".join(
        f"M{2 * x} {int(top)}V{int(bottom) + 1}" for x, (top, bottom) in enumerate(zip(high, low, strict=True))
    )
    per_second = WAVE_WIDTH / seconds
    marks = tuple(
        (kind, round(begin * per_second, 1), round(max(end - begin, 0.02) * per_second, 1), words)
        for kind, begin, end, words in spans
    )
    step = next(step for step in (1, 2, 5, 10, 30, 60, 600) if seconds / step <= 12)
    ticks = tuple((round(at * per_second, 1), f"{at}") for at in range(0, int(seconds) + 1, step))
    return Wave(path, round(seconds, 2), marks, ticks)


def _kind(message: SipMessage) -> str:
    if message.status is None:
        return "request"
    if message.status < 200:
        return "provisional"
    return "success" if message.status < 300 else "failure"


def _stream_label(stream: RtpStream) -> str:
    seconds = max(stream.packets[-1].at - stream.at, 0.0)
    lost = f", {stream.lost} lost" if stream.lost else ""
    return printable(f"audio {stream.codec} {seconds:.1f} s{lost}", 34)
