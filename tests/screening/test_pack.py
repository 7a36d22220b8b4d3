"""The CN pack holds what the policy asks of it, and a wrong pack is refused with file and line."""

import re
import zoneinfo
from datetime import datetime
from importlib.resources import files

import pytest

from pbxguard.errors import BadPack
from pbxguard.packs import load
from pbxguard.screening.call import Label, Reason
from pbxguard.screening.pack import FILES, compile_pack

CN = load("cn")
FOLDER = files("pbxguard.packs") / "cn"
TEXTS = {name: (FOLDER / name).read_text("utf-8") for name in FILES}


local = datetime.fromisoformat  # dates of a pack are local, so they have no zone


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
    assert (CN.name, CN.country, CN.cc, CN.idd) == ("cn 2026.11", "CN", "86", "00")
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
    rows = [rules for rules in CN._classes.values() if not rules.verified]
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
    areas = CN._areas
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
    row = "svc_new,955,5,5,bare,yes,no,,x,verified,2026-11-21"
    first = line_of("classes.csv", "svc95_customer,955")
    assert f"svc95_customer too, at classes.csv line {first}" in appended("classes.csv", row)


def test_duplicate_across_files():
    """A prefix that a class claims already is refused in prefixes.csv."""
    error = appended("prefixes.csv", "106,iot,cm,,13,no,,,x,verified,2026-11-21")
    assert "sms_port too, at classes.csv line" in error


def test_same_pattern_of_another_length_is_no_duplicate():
    """The same prefix may belong to two classes when no number has both lengths."""
    row = "svc_new,955,9,9,bare,yes,no,,x,verified,2026-11-21\n"
    pack = compile_pack(TEXTS | {"classes.csv": TEXTS["classes.csv"] + row})
    assert pack.national_class("955123456", "bare") == "svc_new"
    assert pack.national_class("95512", "bare") == "svc95_customer"


@pytest.mark.parametrize(
    ("name", "row", "why"),
    [
        ("classes.csv", "svc_new,99,5,4,bare,yes,no,,x,verified,2026-11-21", "len_max"),
        ("classes.csv", "svc_new,99,5,25,bare,yes,no,,x,verified,2026-11-21", "len_max"),
        ("classes.csv", "svc_new,9x,5,5,bare,yes,no,,x,verified,2026-11-21", "pattern"),
        ("classes.csv", "svc_new,99,5,5,nsn,yes,no,,x,verified,2026-11-21", "bare too"),
        ("classes.csv", "svc_new,99,5,5,bear,yes,no,,x,verified,2026-11-21", "form"),
        ("classes.csv", "svc_new,99,5,5,bare,maybe,no,,x,verified,2026-11-21", "voice_cli"),
        ("classes.csv", "svc_new,99,5,5,bare,yes,no,nolabel,x,verified,2026-11-21", "label"),
        ("classes.csv", "svc_new,99,5,5,bare,yes,no,,,verified,2026-11-21", "source"),
        ("classes.csv", "svc_new,99,5,5,bare,yes,no,,x,sure,2026-11-21", "status"),
        ("classes.csv", "svc_new,99,5,5,bare,yes,no,,x,verified,yesterday", "checked_on"),
        ("classes.csv", "svc_new,99,5", "fields"),
        ("classes.csv", "fixed,,,,,no,no,,x,verified,2026-11-21", "other voice_cli"),
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
        ("pack.toml", '"110", ', '"999", ', 9, "'999' has no class 'emergency'"),
        ("pack.toml", 'version = "2026.11"\n', "", 0, "'version' is missing"),
        ("pack.toml", "checked_on = 2026-11-21", 'checked_on = "soon"', 10, "checked_on"),
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
    with pytest.raises(BadPack, match="shipped are cn"):
        load(name)
