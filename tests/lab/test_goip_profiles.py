"""Wire-image profiles: each value has its evidence; a wrong file is named."""

import tomllib
from pathlib import Path

import pytest

from pbxguard.errors import BadConfig, UnknownName
from pbxguard.lab.goip import profiles
from pbxguard.lab.goip.profiles import CallerId, Evidence, Fact, Profile, load, read, shipped

FOLDER = Path(profiles.__file__).parent
DBL = (FOLDER / "dbl.toml").read_text()


def test_two_profiles_are_shipped() -> None:
    """They are dbl and generic, and both can be read."""
    assert shipped() == ("dbl", "generic")
    assert all(isinstance(load(name), Profile) for name in shipped())


@pytest.mark.parametrize("name", ["dbl", "generic"])
def test_every_value_says_what_it_rests_on(name: str) -> None:
    """Each field but the title is a fact with an evidence tag and a note."""
    facts = [getattr(load(name), field) for field in Profile.model_fields if field != "title"]
    assert all(isinstance(fact, Fact) and fact.evidence in Evidence and len(fact.note) > 3 for fact in facts)


def test_dbl_is_what_the_sources_say() -> None:
    """The marks of the vendor's SIP (lab-and-goip.md 2.2)."""
    dbl = load("dbl")
    assert (dbl.user_agent.value, dbl.sdp_session.value) == ("dble", "DBL Session")
    assert dbl.codecs.value == ("alaw", "ulaw", "g729", "g723")
    assert dbl.progress.value == (180, 183)
    assert (dbl.register_s.value, dbl.rtp_timeout_s.value, dbl.event_payload.value) == (60, 10, 101)
    assert (dbl.busy_status.value, dbl.busy_phrase.value) == (480, "Remote Busy")


def test_generic_has_no_mark_of_a_vendor() -> None:
    """Nothing in the generic profile rests on a vendor or on reverse engineering."""
    generic = load("generic")
    facts = [getattr(generic, field) for field in Profile.model_fields if field != "title"]
    assert {fact.evidence for fact in facts} <= {Evidence.STANDARD, Evidence.ASSUMED}
    assert "DBL" not in (FOLDER / "generic.toml").read_text()
    assert generic.caller_id.value is CallerId.FROM


def edited(old: str, new: str) -> str:
    assert old in DBL
    return DBL.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (edited("[ptime]", "[ptyme]"), "profile x: ptime: Field required"),
        (DBL + '\n[colour]\nvalue = 1\nevidence = "V"\nnote = "none"\n', "colour: Extra inputs"),
        (edited('evidence = "R"', 'evidence = "X"'), "user_agent.evidence"),
        (edited('value = "dble"', 'value = "dble\\r\\nEvil: yes"'), "user_agent.value: .*printable"),
        (edited("value = 101", "value = 8"), "event_payload.value"),
        (edited("value = 480", "value = 500"), "busy_status.value"),
        (edited('value = "DBL Session"', "value = "), "profile x: Invalid value"),
        (edited("value = 20", 'value = 20\nwhy = "x"'), "ptime.why"),
    ],
)
def test_a_wrong_profile_is_named(text: str, says: str) -> None:
    """The message has the name and the key, and is one line."""
    with pytest.raises(BadConfig, match=says) as caught:
        read(text, "x")
    assert "\n" not in str(caught.value)


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    """A path is a file; a name that there is not lists those there are; a file that there is not is named."""
    own = tmp_path / "own.toml"
    own.write_text(edited('value = "dble"', 'value = "HYBERTONE"'))
    assert load(str(own)).user_agent.value == "HYBERTONE"
    with pytest.raises(UnknownName, match="there are dbl, generic"):
        load("nokia")
    with pytest.raises(BadConfig, match="cannot be read"):
        load(str(tmp_path / "none.toml"))
    own.write_bytes(b"\xff")
    load.cache_clear()
    with pytest.raises(BadConfig, match="not UTF-8"):
        load(str(own))


def test_the_files_are_plain_toml() -> None:
    """They can be read without pbxguard: each value stands in a table of its own."""
    for name in shipped():
        data = tomllib.loads((FOLDER / f"{name}.toml").read_text())
        assert all(set(fact) == {"value", "evidence", "note"} for key, fact in data.items() if key != "title")
