"""Settings: what holds without a file, and one clear line for a wrong one."""

import tomllib
from pathlib import Path

import pytest

from pbxguard import config, packs
from pbxguard.errors import BadConfig, BadPack, Unconfirmed
from pbxguard.screening.call import Roaming, Trunk

WHOLE = """\
pack = "cn"
state = "/var/lib/pbxguard"

[guard]
deadline_ms = 200

[asterisk]
host = "198.18.0.1"

[log]
level = "debug"
mask_numbers = true

[trunks.intl]
kind = "intl_gateway"
roaming = "unknown"
fail = "closed"

[trunks."ent-1"]
kind = "enterprise"
allocated = ["0571865543*"]
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of this machine are read."""
    monkeypatch.chdir(tmp_path)
    for name in ("PBXGUARD_CONFIG", "PBXGUARD_STATE", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "site.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refused(path: Path) -> str:
    with pytest.raises(BadConfig) as error:
        config.load(path)
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert error.value.exit_code == 2
    return message.removeprefix(str(path))


def test_without_a_file_the_labs_trunks_apply() -> None:
    """No file is no error: the lab's own settings hold."""
    settings = config.load()
    assert {name: trunk.kind for name, trunk in settings.trunks.items()} == {
        "intl": "intl_gateway", "natl": "national", "ent": "enterprise", "goip1": "sim_gateway",
    }  # fmt: skip
    assert (settings.asterisk.port, settings.guard.deadline_ms) == (4573, 300)
    assert settings.trunk("nowhere") is None


def test_whole_file(tmp_path: Path) -> None:
    """Every section is read, and a site's trunks take the place of the lab's."""
    settings = config.load(written(tmp_path, WHOLE))
    assert (settings.guard.deadline_ms, settings.guard.workers) == (200, 4)
    assert settings.asterisk.host == "198.18.0.1"
    assert settings.trunk("intl") == Trunk("intl", "intl_gateway", roaming=Roaming.UNKNOWN, fail="closed")
    assert settings.trunk("ent-1") == Trunk("ent-1", "enterprise", allocated=("0571865543*",))
    assert settings.trunk("natl") is None
    assert settings.state_dir == Path("/var/lib/pbxguard")


def test_file_of_a_windows_editor(tmp_path: Path) -> None:
    """A byte order mark and CRLF line ends are no error."""
    text = b"\xef\xbb\xbf" + WHOLE.replace("\n", "\r\n").encode()
    assert config.load(written(tmp_path, text)) == config.load(written(tmp_path, WHOLE))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pakc = 'cn'", ":1: pakc: no setting has this name; there are pack, screening, "),
        (
            "\n[guard]\ndeadline = 1",
            ":3: guard.deadline: no setting has this name; [guard] has deadline_ms, workers; did you mean ",
        ),
        ("[gard]\ndeadline_ms = 1", ":1: gard: no setting has this name"),
        ("[trunks.a]\nkind='x'\n[trunks.b]\nkind='y'\ntrust=true", ":5: trunks.b.trust: no setting has this name"),
        (
            "[guard]\ndeadline_ms = 'soon'",
            ":2: guard.deadline_ms: 'soon' is no whole number; write digits without quotes",
        ),
        ("[guard]\ndeadline_ms = 0", ":2: guard.deadline_ms: 0 is too little; 10 is the least"),
        ("guard.workers = 1000", ":1: guard.workers: 1000 is too much; 64 is the most"),
        ("[asterisk]\nport = 70000", ":2: asterisk.port: 70000 is too much; 65535"),
        ("[log]\nlevel = 'loud'", ":2: log.level: 'loud' is none of debug, info, warning, error"),
        ("[trunks.a]\nkind = 'x'\nfail = 'maybe'", ":3: trunks.a.fail: 'maybe' is none of open, closed"),
        ("[trunks.a]\nkind = 'x'\nroaming = 'maybe'", ":3: trunks.a.roaming: 'maybe' is none of yes, no, unknown"),
        ("[trunks.a]\nkind = 'x'\nallocated = [1]", ":3: trunks.a.allocated.0: 1 is no text; write it in quotes"),
        (
            "[trunks.a]\ntrusted = true",
            ':1: trunks.a.kind: is missing; add it under [trunks.a], such as kind = "intl_gateway"',
        ),
        (
            "[trunks.a]\nknd = 'national'",
            ":2: trunks.a.knd: no setting has this name; [trunks.a] has kind, trusted, ",
        ),
        ("[trunks.a]\nkind = 'x'\ntrusted = 'on?'", ":3: trunks.a.trusted: 'on?' is neither true nor false; write"),
        (
            "[freeswitch.a]\nprot = 1",
            ":2: freeswitch.a.prot: no setting has this name; [freeswitch.a] has host, port, ",
        ),
        ("state = 3", ":1: state: 3 is no path; write it in quotes"),
        ("guard.workers = 1.5", ":1: guard.workers: 1.5 is no whole number"),
        ("trunks = 3", ":1: trunks: 3 is no table; write [trunks.NAME]"),
        ("guard = []", ":1: guard: [] is no table; write [guard]"),
    ],
)
def test_wrong_setting_is_named(tmp_path: Path, text: str, message: str) -> None:
    """An unknown key or a wrong value is one line with file, line, key, what is expected and what to write."""
    said = refused(written(tmp_path, text))
    assert said.startswith(message)
    assert not any(word in said for word in ("Input should", "Field required", "String should"))


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("pakc = 'cn'", "pack"),
        ("[trunks.a]\nknd = 'national'", "kind"),
        ("[trunks.a]\nkind = 'x'\nfail = 'opn'", "open"),
        ("[log]\nlevel = 'WARN'", "warning"),
    ],
)
def test_mistyped_setting_is_guessed(tmp_path: Path, text: str, near: str) -> None:
    """A key or word that is nearly one that there is ends with that one; a key that is missing for it comes later."""
    assert refused(written(tmp_path, text)).endswith(f"; did you mean {near}?")


@pytest.mark.parametrize("name", ["a b", "a.b", "x" * 33, "", "a$b", "名", "a,b", "[x", "a\\nb"])
def test_odd_trunk_name_is_refused(tmp_path: Path, name: str) -> None:
    """A trunk is named by letters, digits, hyphens and underscores: the dialplan passes nothing else."""
    message = refused(written(tmp_path, f'[trunks."{name}"]\nkind = "national"\n'))
    assert message.startswith(":1: trunks.")
    assert "does not fit: a trunk or PBX is named by 1 to 32 letters, digits, hyphens and underscores" in message


@pytest.mark.parametrize("text", ["[guard", "a = ", "a = 1\na = 2", "[guard]\n[guard]", "x"])
def test_broken_toml(tmp_path: Path, text: str) -> None:
    """What is no TOML is said to be none, with the line."""
    message = refused(written(tmp_path, text))
    assert message.startswith(": not valid TOML: ")
    assert "(at " in message


@pytest.mark.parametrize("text", ["a = " + "[" * 20_000, "a = " + "{a = " * 20_000])
def test_nested_without_end(tmp_path: Path, text: str) -> None:
    """Thousands of nested brackets are one clear line, not the end of the parser's stack."""
    assert refused(written(tmp_path, text)).startswith(": not valid TOML: nested too deep")


@pytest.mark.parametrize(
    ("text", "line", "limit", "deadline"),
    [
        ("[guard]\ndeadline_ms = 2001\n", 2, 2000, 2001),
        ("[asterisk]\n\nrequest_timeout_ms = 299\n", 3, 299, 300),
        ("[asterisk]\nrequest_timeout_ms = 499\n[guard]\ndeadline_ms = 500\n", 2, 499, 500),
    ],
)
def test_connection_that_ends_before_the_deadline(
    tmp_path: Path, text: str, line: int, limit: int, deadline: int
) -> None:
    """A request_timeout_ms below the deadline would cut late calls off without a verdict: it is refused by name."""
    assert refused(written(tmp_path, text)).startswith(
        f":{line}: asterisk.request_timeout_ms: {limit} ms is below guard.deadline_ms ({deadline} ms)"
    )


def test_connection_that_lasts_as_long_as_the_deadline(tmp_path: Path) -> None:
    """Equal times are accepted."""
    text = "[asterisk]\nrequest_timeout_ms = 500\n[guard]\ndeadline_ms = 500\n"
    assert config.load(written(tmp_path, text)).asterisk.request_timeout_ms == 500


SCREENING = """\
[screening]
pack = "cn"
accept_unverified = ["trunk:intl_gateway.cli_missing"]
shadow_rules = ["5.punishment"]
shadow_lists = ["reports"]
rules_off = ["8.from_pai"]
"""


def test_what_a_site_chooses_of_its_pack(tmp_path: Path) -> None:
    """Each of the four lists arrives as written, and the pack by either of its names."""
    chosen = config.load(written(tmp_path, SCREENING)).screening
    assert chosen.accept_unverified == ("trunk:intl_gateway.cli_missing",)
    assert (chosen.shadow_rules, chosen.shadow_lists) == (("5.punishment",), ("reports",))
    assert (chosen.rules_off, chosen.pack) == (("8.from_pai",), "cn")
    for text in ('pack = "de"', '[screening]\npack = "de"', 'pack = "de"\n[screening]\npack = "de"'):
        settings = config.load(written(tmp_path, text))
        assert (settings.pack, settings.screening.pack, settings.screening.accept_unverified) == ("de", "de", ())


def test_without_a_choice_the_labs_applies() -> None:
    """With no [screening] the lab's list is accepted, and the shipped CN pack loads with it."""
    settings = config.load()
    assert settings.screening.accept_unverified == config.LAB_ACCEPTED
    assert packs.load(settings.pack, settings.screening).id == "cn"
    assert config.Settings(screening=config.ScreeningSettings(pack="gb")).pack == "gb"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[screening]\nshadow = ['x']", ":2: screening.shadow: no setting has this name"),
        ("[screening]\nrules_off = 'x'", ":2: screening.rules_off: 'x' is no list; write brackets around it"),
        ("[screening]\nrules_off = [1]", ":2: screening.rules_off.0: 1 is no text; write it in quotes"),
        ("[screening]\nrules_off = ['']", ":2: screening.rules_off.0: is empty; "),
        ("screening = 3", ":1: screening: 3 is no table; write [screening]"),
        ("pack = 'cn'\n[screening]\npack = 'de'", ":3: screening.pack: 'de', but pack is 'cn'"),
        (
            "[trunks.a]\nkind = 'x'\ncli_prefixes = ['abc']",
            ":3: trunks.a.cli_prefixes.0: 'abc' does not fit: write 1 to 12 digits",
        ),
    ],
)
def test_wrong_choice_is_named(tmp_path: Path, text: str, message: str) -> None:
    """File, line and key of what is wrong."""
    assert refused(written(tmp_path, text)).startswith(message)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("accept_unverified = ['*']\nrules_off = ['5.punishmnt']", "5.punishment"),
        ("accept_unverified = ['*']\nshadow_rules = ['7.default']", "7.default_off"),
        ("accept_unverified = ['trunk:intl_gateway.cli_mising']", "trunk:intl_gateway.cli_missing"),
        ("accept_unverified = ['*']\nrules_off = ['1.emergency']", "1.emergency"),
    ],
)
def test_unknown_choice_lists_near_names(tmp_path: Path, text: str, near: str) -> None:
    """A name that the pack does not have, or a rule that nobody may switch off, is refused when the pack is read."""
    settings = config.load(written(tmp_path, f"[screening]\n{text}"))
    with pytest.raises((BadConfig, BadPack)) as error:
        packs.load(settings.pack, settings.screening)
    assert near in str(error.value)


def test_labs_choice_is_not_that_of_a_site(tmp_path: Path) -> None:
    """A settings file with no [screening] accepts nothing: one line says what to do, and a list follows."""
    for text in ("", WHOLE, 'pack = "cn"'):
        settings = config.load(written(tmp_path, text))
        assert settings.screening.accept_unverified == ()
        with pytest.raises(Unconfirmed, match=r'write accept_unverified = \["\*"\] under \[screening\]') as error:
            packs.load(settings.pack, settings.screening)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 350
        # Each of them is below, as it can be copied into the settings, in lines that a terminal has room for.
        more = error.value.more()
        assert max(map(len, more)) <= 100
        assert tuple(tomllib.loads("\n".join(more))["accept_unverified"]) == error.value.names
    settings = config.load(written(tmp_path, WHOLE + "[screening]\naccept_unverified = ['*']\n"))
    assert packs.load(settings.pack, settings.screening).id == "cn"


def test_unverified_refusal_must_be_accepted(tmp_path: Path) -> None:
    """A pack row that refuses calls without a source names its file and line, and what to write to accept it."""
    settings = config.load(written(tmp_path, "[screening]\naccept_unverified = []"))
    with pytest.raises(BadPack, match=r"line \d+: .*accept_unverified = .* under \[screening\]"):
        packs.load(settings.pack, settings.screening)


def test_not_utf8(tmp_path: Path) -> None:
    """A file in GBK is refused with the remedy."""
    assert refused(written(tmp_path, "# 设置".encode("gbk"))) == ": not UTF-8 text at byte 2; save it as UTF-8"


def test_missing_file_and_folder(tmp_path: Path) -> None:
    """A file that is not there, or is a folder, is named."""
    assert "No such file" in refused(tmp_path / "none.toml")
    assert "Is a directory" in refused(tmp_path)


def test_which_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--config beats PBXGUARD_CONFIG, which beats pbxguard.toml in the working directory."""
    for number, name in enumerate(("pbxguard.toml", "env.toml", "given.toml"), start=1):
        (tmp_path / name).write_text(f"[guard]\nworkers = {number}\n")
    assert config.load().guard.workers == 1
    monkeypatch.setenv("PBXGUARD_CONFIG", str(tmp_path / "env.toml"))
    assert config.load().guard.workers == 2
    assert config.load(tmp_path / "given.toml").guard.workers == 3
    monkeypatch.setenv("PBXGUARD_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(BadConfig, match=r"none\.toml"):
        config.load()


def test_where_the_state_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PBXGUARD_STATE beats the file, which beats the user's state folder; store.url beats them all."""
    site = written(tmp_path, WHOLE)
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    assert config.load().store_url == "/xdg/pbxguard/pbxguard.db"
    assert config.load(site).store_url == "/var/lib/pbxguard/pbxguard.db"
    monkeypatch.setenv("PBXGUARD_STATE", "/elsewhere")
    assert config.load().store_url == "/elsewhere/pbxguard.db"
    assert config.load(site).store_url == "/elsewhere/pbxguard.db"
    assert config.load(written(tmp_path, "store.url = '/x.db'")).store_url == "/x.db"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "https://redress.example/card",
        "http://198.18.0.1:8080/a/b?c=d%2C&e=1#f",
        "HTTPS://[2001:db8::1]/x_y~z",
        "https://example.com/" + "a" * 180,
    ],
)
def test_contact_url(tmp_path: Path, url: str) -> None:
    """An http or https URL of plain characters is taken."""
    assert config.load(written(tmp_path, f"contact_url = '{url}'")).contact_url == url


@pytest.mark.parametrize("sign", [*";,|<>\"'\\ ${}()*`^", "\n", "\r", "\t", "\0", "\x7f", "\x85", "\u2028", "é"])
def test_contact_url_with_a_sign_that_ends_something(tmp_path: Path, sign: str) -> None:
    """What would end a channel variable, a quote or a SIP header is refused when the settings are read."""
    for url in (f"https://h/a{sign}b", f"https://h/a{sign}", f"https://{sign}h/"):
        quoted = "".join(f"\\u{ord(c):04x}" for c in url)
        message = refused(written(tmp_path, f'pack = "cn"\ncontact_url = "{quoted}"'))
        assert message.startswith(":2: contact_url: must be an http or https URL of at most 200 characters, without ")


@pytest.mark.parametrize(
    "url",
    [
        "sip:help@h",
        "ftp://h/",
        "//h/",
        "h",
        "https://",
        "https:///x",
        "javascript:alert(1)",
        "https://h/" + "a" * 300,
    ],
)
def test_contact_url_of_another_kind(tmp_path: Path, url: str) -> None:
    """Another scheme, no host or a URL without an end is refused."""
    assert ":1: contact_url: must be an http or https URL" in refused(written(tmp_path, f"contact_url = '{url}'"))
