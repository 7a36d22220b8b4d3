"""The CN pack holds what the policy asks of it, and a wrong pack is refused with file and line."""

import ast
import re
import zoneinfo
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from itertools import pairwise

import pytest

from pbxguard import screening
from pbxguard.errors import BadConfig, BadPack, Unconfirmed
from pbxguard.packs import load, shipped
from pbxguard.screening.call import Label, Reason
from pbxguard.screening.pack import FILES, compile_pack
from pbxguard.screening.tables import Span

CN = load("cn")
FOLDER = files("pbxguard.packs") / "cn"
TEXTS = {name: (FOLDER / name).read_text("utf-8") for name in FILES}


local = datetime.fromisoformat  # dates of a pack are local, so they have no zone


@dataclass(frozen=True)
class Site:
    """The choice of a site: nothing accepted, nothing in shadow, nothing off."""

    accept_unverified: tuple[str, ...] = ()
    shadow_rules: tuple[str, ...] = ()
    shadow_lists: tuple[str, ...] = ()
    rules_off: tuple[str, ...] = ()


def at(text):
    """A moment of Chinese local time, aware."""
    return local(text).replace(tzinfo=zoneinfo.ZoneInfo("Asia/Shanghai"))


def line_of(name, text):
    """Line number of the first line of a pack file that starts so."""
    return next(n for n, line in enumerate(TEXTS[name].splitlines(), 1) if line.startswith(text))


def refused(name, old, new):
    """The error that compiling the CN pack with one replacement gives."""
    assert old in TEXTS[name]
    with pytest.raises(BadPack) as error:
        compile_pack(TEXTS | {name: TEXTS[name].replace(old, new, 1)})
    assert "\n" not in str(error.value)
    return str(error.value)


def appended(name, row):
    """The error that one more line at the end of a pack file gives."""
    with pytest.raises(BadPack) as error:
        compile_pack(TEXTS | {name: TEXTS[name] + row + "\n"})
    last = len(TEXTS[name].splitlines()) + 1
    assert str(error.value).startswith(f"{name} line {last}: ")
    return str(error.value)


def test_head():
    """The pack says who it is and where home is, and its zone exists."""
    assert (CN.name, CN.country, CN.cc, CN.idd) == ("cn 2026.11", "CN", "86", ("00",))
    assert CN.emergency == {"110", "119", "120", "122"}
    assert zoneinfo.ZoneInfo(CN.timezone).key == "Asia/Shanghai"
    assert CN.home_language == "zh"


def test_every_reason_and_label_has_its_texts():
    """labels.toml covers Reason and Label, no more and no less, in both languages."""
    assert CN.reasons == {str(reason) for reason in Reason}
    assert CN.labels == {str(label) for label in Label}
    for reason in Reason:
        assert CN.text(reason, "zh") != CN.text(reason, "en")
        assert CN.text(reason, "fr") == CN.text(reason, "en")
    for label in Label:
        assert CN.display(label, "zh") != CN.display(label, "en")


@pytest.mark.parametrize(
    ("reason", "group"),
    [
        (Reason.INTL_DEFAULT_OFF, "not_opted_in"),
        (Reason.SUBSCRIBER_BLOCKLIST, "own_block"),
        (Reason.SYSTEM_BLOCKLIST, "system"),
        (Reason.NATIONAL_CLI_ON_INTL_TRUNK, "system"),
        (Reason.CLI_MISSING, "withheld"),
        (Reason.GUARD_FAILED, "failed"),
        (Reason.ROAMING_UNKNOWN, "pass"),
        (Reason.DEFAULT, "pass"),
    ],
)
def test_reason_groups(reason, group):
    """The group of a reason decides its treatment."""
    assert CN.reason_group(reason) == group


@pytest.mark.parametrize(
    ("who", "at", "closed"),
    [
        (("zhejiang", "cm", "voice", "intl"), local("2022-05-19T23:59:59"), False),
        (("zhejiang", "cm", "voice", "intl"), local("2022-05-20"), True),
        (("zhejiang", "cm", "voice", "hmt"), local("2026-06-01"), True),
        (("zhejiang", "cu", "voice", "intl"), local("2026-06-01"), False),
        (("heilongjiang", "cm", "voice", "intl"), local("2026-06-01"), False),
        (("henan", "cm", "sms", "hmt"), local("2022-05-06T23:59:59"), False),
        (("henan", "ct", "sms", "hmt"), local("2022-05-07"), True),
        (("henan", "cm", "voice", "hmt"), local("2026-06-01"), False),
    ],
)
def test_default_off(who, at, closed):
    """Province, operator, channel and the local date decide; the first day is inside."""
    row = CN.default_off(*who, at)
    assert (row is not None) == closed


def test_default_off_ends_before_its_last_date():
    """Dates are half-open, and a row that says open closes nothing."""
    source = "s,verified,2026-11-21"
    text = TEXTS["default_off.csv"] + (
        f"gansu,*,voice,intl,2026-01-01,2026-02-01T12:00,closed,all,{source}\n"
        f"gansu,*,voice,intl,2026-02-01T12:00,,open,all,{source}\n"
    )
    pack = compile_pack(TEXTS | {"default_off.csv": text})
    assert pack.default_off("gansu", "ct", "voice", "intl", local("2026-02-01T11:59:00"))
    assert pack.default_off("gansu", "ct", "voice", "intl", local("2026-02-01T12:00:00")) is None


def test_trunk_rules():
    """The trunk classes of the reference have their rules; what is not named changes nothing."""
    intl = CN.trunks["intl_gateway"]
    assert intl.wire_format == ("plus", "idd00")
    assert (intl.national_fixed, intl.national_mobile, intl.roaming_unknown) == (
        "block",
        "roaming_check",
        "label",
    )
    assert (intl.cli_missing, intl.origin_notice, "cli_missing" in intl.unverified) == ("block", True, True)
    assert (CN.trunks["national"].national_fixed, CN.trunks["national"].foreign_cli) == ("pass", "pass")
    assert (CN.trunks["enterprise"].cli, CN.trunks["enterprise"].foreign_cli) == ("allocated_only", "block")
    assert "simbox" in CN.trunks["sim_gateway"].detectors
    assert {"internal", "sms_intl", "sms_port"} <= set(CN.trunks)


@pytest.mark.parametrize(
    ("name", "voice_cli", "dno", "label"),
    [
        ("mobile_cm", "yes", False, ""),
        ("mobile_mvno_ct", "yes", False, "mvno"),
        ("svc95_vas", "outbound_licence", False, "vas_call_centre"),
        ("inbound_only", "yes", True, ""),
        ("sms_port", "no", False, ""),
        ("iot", "no", False, ""),
        ("privacy_700", "yes", False, "privacy_number"),
        ("gov_96110", "yes", False, "verified_gov"),
        ("reserved", "yes", False, "reserved_range"),
        ("intl_hk", "yes", False, ""),
    ],
)
def test_class_rules(name, voice_cli, dno, label):
    """A class has its voice, do-not-originate and label rules."""
    rules = CN.class_rules(name)
    assert (rules.voice_cli, rules.dno, rules.label) == (voice_cli, dno, label)


@pytest.mark.parametrize("name", ["invalid", "intl_bad_cc", "intl_bad_length", "svc95_bad_length", "missing"])
def test_no_rules_for_what_is_no_class(name):
    """A number that is not valid has no class rules, so that a policy cannot pass it by mistake."""
    assert CN.class_rules(name) is None


def test_no_call_is_refused_on_an_unverified_row():
    """A class row without a source never refuses a call by its class rules."""
    rows = [rules for rules in CN._plan.classes.values() if not rules.verified]
    assert {rules.name for rules in rows} >= {"svc95_other", "reserved"}
    assert [rules.name for rules in rows if rules.dno or rules.voice_cli == "no"] == []


def test_regions():
    """Regions have names and the languages in which their callers are spoken to."""
    assert (CN.region_name("hk", "zh"), CN.region_name("hk", "en")) == ("中国香港", "Hong Kong")
    assert (CN.region_name("us", "fr"), CN.region_name("zz", "en")) == ("United States", "ZZ")
    assert [CN.languages(code) for code in ("hk", "us", "cn", None)] == [
        ("zh", "en"),
        ("en",),
        ("zh", "en"),
        ("zh", "en"),
    ]
    assert {code for code, region in CN.regions.items() if region.group == "hmt"} == {"hk", "mo", "tw"}


def test_areas():
    """321 area codes, each in one of the 31 provinces; every local number has 7 or 8 digits."""
    areas = CN._plan.areas
    assert len(areas) == 321
    assert len({area.province for area in areas.values()}) == 31
    assert all(area.local_lengths <= {7, 8} for area in areas.values())
    assert (CN.area("57186554321").province, CN.area("2512345678").code) == ("zhejiang", "25")
    assert CN.area("8521234567") is None


@pytest.mark.parametrize("name", FILES)
def test_missing_file(name):
    """A pack without one of its files is refused by that file's name."""
    with pytest.raises(BadPack, match=f"^{name}: the file is missing"):
        compile_pack({key: text for key, text in TEXTS.items() if key != name})


def test_unknown_file():
    """A file that is not of a pack, such as a misspelt one, is refused."""
    with pytest.raises(BadPack, match=r"^class\.csv: not a file of a pack"):
        compile_pack(TEXTS | {"class.csv": ""})


@pytest.mark.parametrize("name", FILES)
def test_empty_and_broken_file(name):
    """An empty file and one of another kind are refused with the file's name, never a traceback."""
    for text in ("", "\x00", '"', "a,b\n1,2\n", "[[["):
        with pytest.raises(BadPack, match=f"^{name} line "):
            compile_pack(TEXTS | {name: text})


def test_duplicate_class_pattern():
    """Two classes that claim the same digits in the same form are refused, and both lines are named."""
    row = "svc_new,955,5,5,bare,yes,no,,no,no,x,verified,2026-11-21"
    first = line_of("classes.csv", "svc95_customer,955")
    assert f"svc95_customer too, at classes.csv line {first}" in appended("classes.csv", row)


def test_duplicate_across_files():
    """A prefix that a class claims already is refused in prefixes.csv."""
    error = appended("prefixes.csv", "106,iot,cm,,13,no,,,x,verified,2026-11-21")
    assert "sms_port too, at classes.csv line" in error


def test_same_pattern_of_another_length_is_no_duplicate():
    """The same prefix may belong to two classes when no number has both lengths."""
    row = "svc_new,955,9,9,bare,yes,no,,no,no,x,verified,2026-11-21\n"
    pack = compile_pack(TEXTS | {"classes.csv": TEXTS["classes.csv"] + row})
    assert pack.national_class("955123456", "bare") == "svc_new"
    assert pack.national_class("95512", "bare") == "svc95_customer"


@pytest.mark.parametrize(
    ("name", "row", "why"),
    [
        ("classes.csv", "svc_new,99,5,4,bare,yes,no,,no,no,x,verified,2026-11-21", "len_max"),
        ("classes.csv", "svc_new,99,5,25,bare,yes,no,,no,no,x,verified,2026-11-21", "len_max"),
        ("classes.csv", "svc_new,9x,5,5,bare,yes,no,,no,no,x,verified,2026-11-21", "pattern"),
        ("classes.csv", "svc_new,099,5,5,bare,yes,no,,no,no,x,verified,2026-11-21", "opens with the prefix 0"),
        ("classes.csv", "svc_new,99,5,5,nsn,yes,no,,no,no,x,verified,2026-11-21", "bare too"),
        ("classes.csv", "svc_new,99,5,5,bear,yes,no,,no,no,x,verified,2026-11-21", "form"),
        ("classes.csv", "svc_new,99,5,5,bare,maybe,no,,no,no,x,verified,2026-11-21", "voice_cli"),
        ("classes.csv", "svc_new,99,5,5,bare,yes,no,nolabel,no,no,x,verified,2026-11-21", "label"),
        ("classes.csv", "svc_new,99,5,5,bare,yes,no,,no,no,,verified,2026-11-21", "source"),
        ("classes.csv", "svc_new,99,5,5,bare,yes,no,,no,no,x,sure,2026-11-21", "status"),
        ("classes.csv", "svc_new,99,5,5,bare,yes,no,,no,no,x,verified,yesterday", "checked_on"),
        ("classes.csv", "svc_new,99,5", "fields"),
        ("classes.csv", "fixed,,,,nsn trunk0,no,no,,no,no,x,verified,2026-11-21", "other voice_cli"),
        ("prefixes.csv", "139,mno,cm,,11,yes,,,x,verified,2026-11-21", "claimed"),
        ("prefixes.csv", "1391,mno,xx,,11,yes,,,x,verified,2026-11-21", "mobile_xx"),
        ("prefixes.csv", "1391,mno,cm,,11,yes,2026-13-01,,x,verified,2026-11-21", "valid_from"),
        ("prefixes.csv", "1391,mno,cm,,11,yes,2026-02-01,2026-01-01,x,verified,2026-11-21", "valid_to"),
        ("areas.csv", "571,zhejiang,x,8,x,verified,2026-11-21", "already"),
        ("areas.csv", "213,zhejiang,x,8,x,verified,2026-11-21", "another code"),
        ("areas.csv", "999,zhejiang,x,eight,x,verified,2026-11-21", "already|length"),
        ("regions.csv", "hk,hmt,,x,x,en,x,verified,2026-11-21", "twice"),
        ("regions.csv", "zz,hmt,852,x,x,en,x,verified,2026-11-21", "belongs to hk"),
        ("regions.csv", "zz,near,999,x,x,en,x,verified,2026-11-21", "group"),
        ("default_off.csv", "gansu,*,voice,intl,soon,,closed,all,x,verified,2026-11-21", "effective_from"),
        ("default_off.csv", "gansu,*,voice,intl,2026-02-30,,closed,all,x,verified,2026-11-21", "2026-02-30"),
        (
            "default_off.csv",
            "gansu,*,voice,intl,2026-02-01T00:00+08:00,,closed,all,x,verified,2026-11-21",
            "local",
        ),
        ("default_off.csv", "gansu,*,fax,intl,2026-02-01,,closed,all,x,verified,2026-11-21", "channel"),
        (
            "default_off.csv",
            "zhejiang,*,voice,hmt,2026-01-01,,closed,all,x,verified,2026-11-21",
            "overlaps with default_off.csv line 2",
        ),
        (
            "default_off.csv",
            "henan,cm,sms,hmt,2020-01-01,2022-05-08,closed,all,x,verified,2026-11-21",
            "overlaps",
        ),
    ],
)
def test_bad_row(name, row, why):
    """A bad row is refused with its file, its line and the column or the rule."""
    assert re.search(why, appended(name, row))


def test_missing_and_unknown_column():
    """A table without one of its columns, or with an unknown one, is refused on line 1."""
    assert refused("areas.csv", "province", "prov").startswith("areas.csv line 1: column 'province' is missing")
    assert refused("areas.csv", "city,", "city,town,").startswith("areas.csv line 1: column 'town' is unknown")


@pytest.mark.parametrize(
    ("name", "old", "new", "line", "why"),
    [
        ("pack.toml", 'idd = "00"', 'idd = "00"\nidb = "1"', 5, "idb: unknown key"),
        ("pack.toml", 'idd = "00"', 'idd = "zero"', 4, "idd"),
        ("pack.toml", 'cc = "86"', "cc = 86", 3, "cc"),
        ("pack.toml", '"110", ', '"999", ', 11, "'999' has no class 'emergency'"),
        ("pack.toml", 'version = "2026.11"\n', "", 0, "'version' is missing"),
        ("pack.toml", "checked_on = 2026-11-21", 'checked_on = "soon"', 12, "checked_on"),
        ("pack.toml", 'country = "CN"', "country = CN", 2, "not TOML"),
        ("trunks.toml", 'cli = "allocated_only"', 'cil = "allocated_only"', None, "cil: unknown key"),
        ("trunks.toml", 'foreign_cli = "block"', 'foreign_cli = "drop"', None, "foreign_cli"),
        ("trunks.toml", '"e164_bare" only', "only", -1, ""),
        ("labels.toml", 'group = "failed"', 'group = "broken"', None, "group"),
        ("labels.toml", "[label.mvno]", "[tag.mvno]", None, "tag: unknown key"),
    ],
)
def test_bad_setting(name, old, new, line, why):
    """A wrong or unknown key in a TOML file is refused with its line."""
    if line == -1:  # a comment is no setting
        compile_pack(TEXTS | {name: TEXTS[name].replace(old, new, 1)})
        return
    if line is None:
        line = TEXTS[name][: TEXTS[name].index(old)].count("\n")
    error = refused(name, old, new)
    assert error.startswith(f"{name} line {line + 1}: "), error
    assert why in error


def test_load_is_cached():
    """A pack is compiled once for a process."""
    assert load("cn") is CN


def test_load_from_a_folder(tmp_path):
    """A site may keep a pack of its own, with a byte order mark if its editor wrote one."""
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text.replace('id = "cn"', 'id = "cn-own"'), "utf-8-sig")
    assert load(str(tmp_path)).id == "cn-own"


def test_load_names_pack_and_line(tmp_path):
    """An error in a site's own pack names the folder, the file and the line."""
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text, "utf-8")
    (tmp_path / "areas.csv").write_text(TEXTS["areas.csv"] + "571,zhejiang,x,8,x,verified,2026-11-21\n", "utf-8")
    with pytest.raises(BadPack, match=rf"^country pack {tmp_path}: areas\.csv line 323: area_code: 571"):
        load(str(tmp_path))
    (tmp_path / "areas.csv").write_bytes(b"\xff")
    with pytest.raises(BadPack, match=r"areas\.csv: not UTF-8"):
        load(str(tmp_path))


@pytest.mark.parametrize("name", ["", "zz", "./nowhere", "../packs", "cn/areas.csv"])
def test_unknown_pack(name):
    """A pack that is not there is refused with the names of those that are."""
    with pytest.raises(BadPack, match="shipped are cn, de"):
        load(name)


# -- dates of prefixes -------------------------------------------------------------------------------------


def with_prefixes(*rows):
    """The CN pack with rows of prefixes.csv in place of 139."""
    lines = [line for line in TEXTS["prefixes.csv"].splitlines() if not line.startswith("139,")]
    return compile_pack(TEXTS | {"prefixes.csv": "\n".join([*lines, *rows]) + "\n"})


def test_a_prefix_changes_hands_at_local_midnight():
    """Two rows of one prefix follow each other; the old one ends where the new one begins, in the pack's zone."""
    pack = with_prefixes(
        "139,mno,cm,,11,yes,,2026-07-01,x,verified,2026-11-21",
        "139,mno,cu,,11,yes,2026-07-01,,x,verified,2026-11-21",
    )
    midnight = datetime(2026, 6, 30, 16, tzinfo=UTC)
    assert pack.national_class("13912345678", "bare", midnight - timedelta(microseconds=1)) == "mobile_cm"
    assert pack.national_class("13912345678", "bare", midnight) == "mobile_cu"
    assert pack.national_class("13912345678", "bare") == "mobile_cu"
    assert midnight in pack.dates


def test_a_prefix_is_nothing_outside_its_dates():
    """Before the first row and after the last one the digits have no class, and a shorter prefix may have them."""
    pack = with_prefixes("1391,mno,cm,,11,yes,2026-01-01,2026-07-01,x,verified,2026-11-21")
    read = {
        day: pack.national_class("13912345678", "nsn", at(day)) for day in ("2025-12-31", "2026-01-01", "2026-07-01")
    }
    assert read == {"2025-12-31": None, "2026-01-01": "mobile_cm", "2026-07-01": None}


def test_prefix_rows_that_hold_at_one_time_are_refused():
    """Rows of one prefix that overlap by a day are refused, with both lines."""
    with pytest.raises(
        BadPack, match=r"^prefixes.csv line \d+: prefix: 139 \(bare\) is claimed by mobile_cm too, at"
    ):
        with_prefixes(
            "139,mno,cm,,11,yes,,2026-07-02,x,verified,2026-11-21",
            "139,mno,cu,,11,yes,2026-07-01,,x,verified,2026-11-21",
        )


def test_spans():
    """A span is half-open, and two that touch do not overlap."""
    days = [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 3)]
    first, second = (Span(*pair) for pair in pairwise(days))
    assert [first.holds(day) for day in days] == [True, False, False]
    assert (first.overlaps(second), second.overlaps(first), first.overlaps(Span(None, days[1]))) == (
        False,
        False,
        True,
    )
    assert (Span().holds(None), first.holds(None), Span(days[0]).holds(None)) == (True, False, True)


def test_privacy_numbers_of_the_95_pool_end_with_the_transition():
    """950 with 10 or 11 digits was an X number until the 700 range took over, and has a bad length after."""
    day = {"2025-06-01": "privacy_x", "2026-06-01": "svc95_bad_length"}
    assert {when: CN.national_class("9501312345", "bare", at(when)) for when in day} == day
    assert CN.national_class("9501312345", "bare") == "svc95_bad_length"


# -- what a class says -------------------------------------------------------------------------------------


def test_privacy_classes():
    """700 numbers need a binding, older X numbers too; an MVNO number may have one and is a number without it."""
    rules = CN._plan.classes.values()
    assert {each.name for each in rules if each.privacy} == {"privacy_700", "privacy_x"}
    legacy = {each.name for each in rules if each.privacy_legacy}
    assert legacy == {"mobile_mvno_cm", "mobile_mvno_cu", "mobile_mvno_ct"}


@pytest.mark.parametrize("number", ["110", "119", "120", "122", "10086", "10000", "10010", "0571110", "01010086"])
def test_never_block(number):
    """Emergency and operator numbers are on no list, alone or behind an area code."""
    assert CN.never_block(number)


@pytest.mark.parametrize("number", ["", "1", "11", "100861", "95588", "13800138000", "057186554321", "+110", "1008*"])
def test_may_be_blocked(number):
    """Every other number may be, and what is no number is not protected."""
    assert not CN.never_block(number)


def test_a_class_has_one_home_form():
    """Rows of a class that disagree on whether it is read bare are refused: its numbers would have two keys."""
    row = "svc96,97,5,6,nsn trunk0,yes,no,,no,no,x,verified,2026-11-21"
    assert "is read bare on line" in appended("classes.csv", row)


@pytest.mark.parametrize(
    ("key", "written", "scopes"),
    [
        ("96110", "96110", {"intl", "enterprise"}),
        ("057196110", "+8657196110", {"intl", "enterprise"}),
        ("110", "110", {"enterprise"}),
        ("0571110", "0571110", {"enterprise"}),
        ("961101", "961101", set()),
        ("13800138000", "13800138000", set()),
        (None, "", set()),
    ],
)
def test_do_not_originate(key, written, scopes):
    """A do-not-originate number is found alone and behind an area code, exact, with the trunks it holds on."""
    assert {row.scope for row in CN.dno(key, written)} == scopes


def test_do_not_originate_prefix():
    """A prefix may be of the home form or of what was written; of several the exact one comes first."""
    rows = "0571865*,all,w,x,verified,2026-11-21\n057186554321,intl,w,x,verified,2026-11-21\n"
    rows += "+11*,intl,w,x,verified,2026-11-21\n"
    pack = compile_pack(TEXTS | {"dno.csv": TEXTS["dno.csv"] + rows})
    assert [row.pattern for row in pack.dno("057186554321", "057186554321")] == ["057186554321", "0571865*"]
    assert [row.pattern for row in pack.dno("+11234567890", "0011234567890")] == ["+11*"]
    assert [row.pattern for row in pack.dno(None, "+11")] == ["+11*"]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("110,all,w,x,verified,2026-11-21", "is there already, at dno.csv line"),
        ("11x,all,w,x,verified,2026-11-21", "pattern"),
        ("11,home,w,x,verified,2026-11-21", "scope"),
        ("11,all,,x,verified,2026-11-21", "why"),
    ],
)
def test_bad_dno_row(row, why):
    """A do-not-originate row that is twice or wrong is refused with file and line."""
    assert why in appended("dno.csv", row)


# -- opt-in codes ------------------------------------------------------------------------------------------

NOW = datetime(2026, 6, 1, 4, tzinfo=UTC)


@pytest.mark.parametrize(
    ("province", "operator", "to", "code", "verb", "channel"),
    [
        ("zhejiang", "cm", "10086", "1219", "open", "voice"),
        ("zhejiang", "cm", "10086", "1901", "close", "voice"),
        ("jiangxi", "cm", "10086", "GJDXDG", "open", "sms"),
        ("jiangxi", "cu", "10010", "GJDXDG", "open", "sms"),
        ("jiangxi", "ct", "10001", "GJDXQX", "close", "sms"),
        ("hebei", "cm", "10086", "KTGJDX", "open", "sms"),
        ("hebei", "cm", "10086", "GBGJDX", "close", "sms"),
        ("gansu", "cm", "10086", "QXGJLH", "close", "voice"),
        ("gansu", "cu", "10010", "GBGJLH", "close", "voice"),
        ("gansu", "cu", "10010", "GBGJDX", "close", "sms"),
        ("gansu", "cbn", "10099", "QXGLLJ", "close", "voice"),
        ("gansu", "ct", "10001", "KTFSR", "guard", "voice"),
        ("gansu", "cm", "10086", "KTFSR", "guard", "voice"),
        ("gansu", "cm", "10085", "11111", "open", "sms"),
        ("gansu", "cu", "10010", "KTGJDX", "open", "sms"),
        ("gansu", "ct", "10001", "1031", "open", "sms"),
    ],
)
def test_codes_of_the_reference(province, operator, to, code, verb, channel):
    """Each code of the reference does what it says, with white space and in either case; a guard opens nothing."""
    for text in (code, f" {code.lower()}\r\n"):
        found = CN.optin_code(province, operator, text, to, NOW)
        assert (found.verb, found.channel, found.groups) == (
            verb,
            channel,
            () if verb == "guard" else ("intl", "hmt"),
        )
        assert CN.optin_code(province, operator, text, to, NOW, channel) == found


@pytest.mark.parametrize(
    ("province", "operator", "text", "to"),
    [
        ("zhejiang", "cm", "12 19", "10086"),
        ("zhejiang", "cm", "1219.", "10086"),
        ("zhejiang", "cm", "\uff11\uff12\uff11\uff19", "10086"),
        ("zhejiang", "cm", "", "10086"),
        ("zhejiang", "cm", "1219", "10010"),
        ("zhejiang", "cu", "1219", "10086"),
        ("gansu", "cm", "1219", "10086"),
        ("gansu", "cm", "KTGJCM", "10086"),
    ],
)
def test_any_other_text_is_no_code(province, operator, text, to):
    """A text that is not exactly a code of this province, operator and number changes nothing."""
    assert CN.optin_code(province, operator, text, to, NOW) is None


def test_a_code_has_its_dates():
    """A code counts from its local date on, and one that is only about texts does not answer for calls."""
    ask = ("hebei", "cm", "KTGJDX", "10086")
    assert CN.optin_code(*ask, at("2022-05-04T23:59:59")) is None
    assert CN.optin_code(*ask, at("2022-05-05")).verb == "open"
    assert CN.optin_code(*ask, at("2022-05-05"), "voice") is None


def test_the_code_of_the_own_province_comes_first():
    """Where a code means one thing everywhere and another in one province, the province's meaning holds there."""
    row = "gansu,cm,voice,open,QXGJLH,10086,intl,,,x,verified,2026-11-21\n"
    pack = compile_pack(TEXTS | {"optin_codes.csv": TEXTS["optin_codes.csv"] + row})
    verbs = {where: pack.optin_code(where, "cm", "qxgjlh", "10086", NOW).verb for where in ("gansu", "hebei")}
    assert verbs == {"gansu": "open", "hebei": "close"}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (
            "zhejiang,cm,voice,close,1219,10086,intl,,,x,verified,2026-11-21",
            "has a meaning already, at optin_codes.csv",
        ),
        ("zhejiangg,cm,voice,open,1,10086,intl,,,x,verified,2026-11-21", "near are zhejiang"),
        ("zhejiang,cmm,voice,open,1,10086,intl,,,x,verified,2026-11-21", "near are cm"),
        ("zhejiang,cm,fax,open,1,10086,intl,,,x,verified,2026-11-21", "channel"),
        ("zhejiang,cm,voice,maybe,1,10086,intl,,,x,verified,2026-11-21", "verb"),
        ("zhejiang,cm,voice,open,1 2,10086,intl,,,x,verified,2026-11-21", "code"),
        ("zhejiang,cm,voice,open,1,shop,intl,,,x,verified,2026-11-21", "to"),
        ("zhejiang,cm,voice,open,1,10086,,,,x,verified,2026-11-21", "groups"),
        ("zhejiang,cm,voice,guard,1,10086,intl,,,x,verified,2026-11-21", "changes no consent"),
        ("zhejiang,cm,voice,open,1,10086,intl,2026-02-01,2026-02-01,x,verified,2026-11-21", "valid_to"),
    ],
)
def test_bad_code_row(row, why):
    """A code row that is wrong, or that gives a code a second meaning at one time, is refused with file and line."""
    assert why in appended("optin_codes.csv", row)


# -- what the site chooses ---------------------------------------------------------------------------------


def test_unverified_refusals_need_the_site():
    """A pack whose refusals no source confirms does not load for a site that has not accepted them; all are named."""
    with pytest.raises(Unconfirmed) as error:
        compile_pack(TEXTS, Site())
    accepted = error.value.names
    assert re.match(rf"[a-z_]+\.(csv|toml) line \d+: .* \({len(accepted)} such in all\); ", str(error.value))
    assert {"trunk:intl_gateway.cli_missing", "dno:110"} <= {*accepted}
    assert compile_pack(TEXTS, Site(accepted)).rules == CN.rules
    with pytest.raises(Unconfirmed) as error:
        compile_pack(TEXTS, Site(accepted[1:]))
    assert error.value.names == accepted[:1]
    assert "such in all" not in str(error.value)


def test_a_choice_that_is_wrong_is_told_before_what_is_not_chosen():
    """A mistyped rule is not hidden behind the refusals that the site has not accepted yet."""
    with pytest.raises(BadConfig, match=r"^screening\.rules_off: '5.punishmnt'"):
        compile_pack(TEXTS, Site((), rules_off=("5.punishmnt",)))


@pytest.mark.parametrize(
    ("name", "old", "new", "accept"),
    [
        (
            "classes.csv",
            "400/800 service pages: answering only,verified",
            "400/800 service pages: answering only,unverified",
            "class:inbound_only",
        ),
        (
            "default_off.csv",
            "all three operators,verified",
            "all three operators,unverified",
            "default_off:jiangxi.sms",
        ),
        ("dno.csv", "is forged,verified", "is forged,unverified", "dno:96110"),
        (
            "trunks.toml",
            '"national_mobile", "roaming_unknown", "cli_missing"]',
            '"national_fixed"]',
            "trunk:intl_gateway.national_fixed",
        ),
    ],
)
def test_every_kind_of_unverified_refusal_is_refused(name, old, new, accept):
    """A class, default-off or do-not-originate row and a trunk's switch are accepted by name, each by its own."""
    assert old in TEXTS[name]
    texts = TEXTS | {name: TEXTS[name].replace(old, new, 1)}
    with pytest.raises(Unconfirmed) as error:
        compile_pack(texts, Site())
    everything = error.value.names
    assert accept in everything
    assert compile_pack(texts, Site(("*",))).id == "cn"
    others = tuple(each for each in everything if each != accept)
    with pytest.raises(BadPack, match=rf"^{re.escape(name)} line \d+: {re.escape(accept)} refuses calls"):
        compile_pack(texts, Site(others))


@pytest.mark.parametrize(
    ("site", "why"),
    [
        (Site(accept_unverified=("*", "class:iott")), "accept_unverified: 'class:iott' .*near are class:iot"),
        (Site(accept_unverified=("*",), shadow_rules=("5.system_lists",)), "shadow_rules: .*near are 5.system_list"),
        (Site(accept_unverified=("*",), rules_off=("nothing.like.it",)), "rules_off: .*there are"),
        (Site(accept_unverified=("*",), rules_off=("1.emergency",)), "rules_off: .*emergency"),
    ],
)
def test_unknown_choice(site, why):
    """A choice of what the pack does not have names the setting and what looks like it; emergency rules stay on."""
    with pytest.raises(BadConfig, match=f"^screening\\.{why}"):
        compile_pack(TEXTS, site)


def test_modes_of_rules():
    """A rule that the site puts to shadow or switches off has that mode, and the others are as they were."""
    pack = compile_pack(TEXTS, Site(("*",), ("5.system_list",), ("campaign",), ("7.default_off",)))
    changed = {rule.id: rule.mode for rule in pack.rules if rule.mode != "enforce"}
    assert changed == {"5.system_list": "shadow", "7.default_off": "off"}
    assert tuple(replace(rule, mode="enforce") for rule in pack.rules) == CN.rules
    assert pack.shadow_lists == {"campaign"}


def test_a_rule_in_shadow_needs_no_acceptance():
    """What has no effect refuses nobody, so an unverified rule in shadow or off loads as it is."""
    text = TEXTS["rules.toml"].replace('id = "5.system_list"', 'id = "5.system_list"\nstatus = "unverified"')
    texts = TEXTS | {"rules.toml": text}
    with pytest.raises(Unconfirmed) as error:
        compile_pack(texts, Site())
    named = error.value.names
    others = tuple(each for each in named if each != "5.system_list")
    assert len(others) == len(named) - 1
    assert compile_pack(texts, Site(others, shadow_rules=("5.system_list",)))
    assert compile_pack(texts, Site(others, rules_off=("5.system_list",)))


def test_load_for_a_site():
    """Two choices are two packs; the same choice is one."""
    site = Site(("*",), shadow_rules=("5.system_list",))
    assert load("cn", site) is load("cn", Site(("*",), shadow_rules=("5.system_list",)))
    assert load("cn", site) is not load("cn")
    with pytest.raises(BadConfig, match=r"\(country pack cn\)$"):
        load("cn", Site(("nothing",)))


RULE = """
[[rule]]
id = "4.mine"
when = "any"
action = "block"
reason = "cli_invalid"
detail = "a rule of a test"
source = "test"
status = "verified"
checked_on = 2026-11-21
"""


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('trunk = ["intl_gatewy"]', "trunk"),
        ('number_class = ["mobil_cm"]', "number_class"),
        ('number_class = ["!nothing*"]', "number_class"),
        ('group = ["hk"]', "group"),
    ],
)
def test_a_rule_names_what_is_in_the_pack(line, key):
    """A rule about a trunk, class or group that the pack does not have is refused with its line."""
    start = len(TEXTS["rules.toml"].splitlines()) + 2
    with pytest.raises(BadPack, match=rf"^rules.toml line {start}: rule 4.mine: {key}: "):
        compile_pack(TEXTS | {"rules.toml": TEXTS["rules.toml"] + RULE + line + "\n"})
    assert compile_pack(TEXTS | {"rules.toml": TEXTS["rules.toml"] + RULE})


def test_a_rule_names_a_switch_of_trunks():
    """A rule that asks for a switch that no trunk has is refused."""
    rule = RULE.replace('"block"', '"trunk.cli_mising"')
    with pytest.raises(BadPack, match=r"rule 4.mine: action: .*near are cli_missing"):
        compile_pack(TEXTS | {"rules.toml": TEXTS["rules.toml"] + rule})


# -- all packs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack_id", shipped())
def test_every_pack_is_complete(pack_id):
    """Each shipped pack has every reason and label, and a notice of three parts for each reason that refuses."""
    pack = load(pack_id)
    assert pack.id == pack_id
    assert (pack.reasons, pack.labels) == (set(map(str, Reason)), set(map(str, Label)))
    for reason in Reason:
        notices = [pack.notice(reason, language) for language in {pack.home_language, "en", "fr"}]
        if pack.reason_group(reason) == "pass":
            assert set(notices) == {None}
        else:
            assert all(part for notice in notices for part in (notice.reason, notice.remedy, notice.papers))


@pytest.mark.parametrize("pack_id", shipped())
def test_every_pack_serves_the_same_trunks(pack_id):
    """A site that changes the pack keeps its trunks: each pack knows the same kinds."""
    assert set(load(pack_id).trunks) == set(CN.trunks)


def test_other_packs_are_data():
    """No module of the core has a province, an operator or a pack of its own in it."""
    names = {name for pack in map(load, shipped()) for name in (*pack.provinces, *pack.operators, pack.id)} - {"any"}
    names -= set(map(str, Reason)) | set(map(str, Label))
    for module in files(screening).iterdir():
        if module.name.endswith(".py"):
            words = {
                node.value
                for node in ast.walk(ast.parse(module.read_text("utf-8")))
                if isinstance(node, ast.Constant)
            }
            assert not words & names, module.name


def test_tags():
    """What a list may name a caller by: classes, groups, regions."""
    assert {
        "mobile_cm",
        "privacy_700",
        "withheld",
        "intl",
        "hmt",
        "privacy",
        "intl_hk",
        "region:hk",
        "region:cn",
    } <= CN.tags


def test_shared_files(tmp_path):
    """A site's own pack may share texts, regions and rules, and no other file, and none that it has itself."""
    own = files("pbxguard.packs") / "sg"
    for name in FILES:
        if (own / name).is_file():
            (tmp_path / name).write_text((own / name).read_text("utf-8"), "utf-8")
    assert load(str(tmp_path)).reasons == CN.reasons
    head = (own / "pack.toml").read_text("utf-8")
    (tmp_path / "pack.toml").write_text(head.replace('"labels.toml"', '"trunks.toml"'), "utf-8")
    with pytest.raises(BadPack, match=r"pack\.toml line \d+: shared: 'trunks.toml' cannot be shared"):
        load(str(tmp_path), Site())
    (tmp_path / "pack.toml").write_text(head, "utf-8")
    (tmp_path / "labels.toml").write_text("", "utf-8")
    with pytest.raises(BadPack, match=r"labels\.toml: is in the pack, and shared"):
        load(str(tmp_path), Site())


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('idd = "00"', 'idd = ["00", "x"]', "idd"),
        ('"Asia/Shanghai"', '"Asia/Shanghigh"', "no time zone"),
        ('languages = ["zh", "en"]', 'languages = ["zh"]', "'en', which"),
        ('languages = ["zh", "en"]', 'languages = ["zh", "en", "fr"]', "labels.toml line .*'fr' is missing"),
        ('home_language = "zh"', 'home_language = "ja"', "home_language"),
    ],
)
def test_bad_head(old, new, why):
    """A prefix, zone or language that cannot be is refused with file and line."""
    assert re.search(why, refused("pack.toml", old, new))


def test_a_refusing_reason_has_its_notice():
    """A reason that refuses and lacks a part of the notice of Art. 32 is refused with its line."""
    start = TEXTS["labels.toml"].index("[reason.cli_missing.notice.zh]")
    line = TEXTS["labels.toml"][:start].count("\n") + 1
    text = TEXTS["labels.toml"][:start] + re.sub("papers = .*\n", "", TEXTS["labels.toml"][start:], count=1)
    with pytest.raises(BadPack, match=rf"^labels.toml line {line}: key 'papers' is missing"):
        compile_pack(TEXTS | {"labels.toml": text})
