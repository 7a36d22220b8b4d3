"""What a string on the wire is read as, and what it must never be read as."""

import csv
import re
from dataclasses import replace
from datetime import UTC, datetime
from importlib.resources import files

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from phonenumbers import COUNTRY_CODE_TO_REGION_CODE, PhoneMetadata

from pbxguard.errors import BadNumber
from pbxguard.packs import load, shipped
from pbxguard.screening.numbering import Form, Number, home_key, read_callee, read_cli
from pbxguard.screening.pack import BAD_LENGTH
from pbxguard.screening.trunks import WIRE_FORMATS

CN = load("cn")
PACKS = [load(pack_id) for pack_id in shipped()]
VECTORS = list(csv.DictReader((files("pbxguard.packs") / "cn" / "vectors.csv").read_text("utf-8").splitlines()))
NO_NUMBER = ("invalid", "missing", "withheld")

# Digits with and without the prefixes that change their meaning, so that many of them are valid numbers.
written = st.builds(
    lambda prefix, opening, rest: prefix + opening + rest,
    st.sampled_from(["", "+", "00", "+86", "0086", "0", "86", "+852", "+1"]),
    st.sampled_from(["", "10", "138", "571", "95", "96110", "106", "1064", "700", "400", "170", "44", "886"]),
    st.text("0123456789", max_size=13),
)


@pytest.mark.parametrize("row", VECTORS, ids=lambda row: f"{row['n']}-{row['cli']}")
def test_vectors(row):
    """Each of the 44 reference vectors has the class that the reference names."""
    number = read_cli(row["cli"], CN, CN.trunks[row["trunk"]].wire_format)
    assert number.number_class == row["class"]


def test_there_are_44_vectors():
    """The vectors of the reference are all there."""
    assert [int(row["n"]) for row in VECTORS] == list(range(1, 45))


@pytest.mark.parametrize(
    ("raw", "form", "number_class", "key", "e164"),
    [
        ("13800138000", Form.BARE, "mobile_cm", "13800138000", "+8613800138000"),
        ("013800138000", Form.NATIONAL0, "mobile_cm", "13800138000", "+8613800138000"),
        ("+8613800138000", Form.PLUS, "mobile_cm", "13800138000", "+8613800138000"),
        ("008613800138000", Form.IDD00, "mobile_cm", "13800138000", "+8613800138000"),
        ("19212345678", Form.BARE, "mobile_cbn", "19212345678", "+8619212345678"),
        ("16101234567", Form.BARE, "mobile_cbn", "16101234567", "+8616101234567"),
        ("16111234567", Form.BARE, "reserved", "16111234567", "+8616111234567"),
        ("17012345678", Form.BARE, "mobile_mvno_ct", "17012345678", "+8617012345678"),
        ("17031234567", Form.BARE, "mobile_mvno_cm", "17031234567", "+8617031234567"),
        ("17101234567", Form.BARE, "mobile_mvno_cu", "17101234567", "+8617101234567"),
        ("13491234567", Form.BARE, "satellite", "13491234567", "+8613491234567"),
        ("13481234567", Form.BARE, "mobile_cm", "13481234567", "+8613481234567"),
        ("+86571 ", Form.INVALID, "invalid", None, None),
        ("057186554321", Form.NATIONAL0, "fixed", "057186554321", "+8657186554321"),
        ("+8657186554321", Form.PLUS, "fixed", "057186554321", "+8657186554321"),
        ("+86057186554321", Form.PLUS, "invalid", None, None),
        ("05718655432", Form.NATIONAL0, "fixed_bad_length", None, None),
        ("057196110", Form.NATIONAL0, "gov_96110", "057196110", None),
        ("01095588", Form.NATIONAL0, "svc95_customer", "01095588", None),
        ("+8695588", Form.PLUS, "svc95_customer", "95588", None),
        ("95110", Form.BARE, "gov_service", "95110", None),
        ("12381", Form.BARE, "gov_service", "12381", None),
        ("0571110", Form.NATIONAL0, "emergency", "0571110", None),
        ("1064123456789", Form.BARE, "iot", "1064123456789", "+861064123456789"),
        ("700123456789012", Form.BARE, "privacy_700", "700123456789012", None),
        ("700123456789012;npdi", Form.BARE, "privacy_700", "700123456789012", None),
        ("", Form.MISSING, "missing", None, None),
        (";user=phone", Form.MISSING, "missing", None, None),
        ("Anonymous", Form.WITHHELD, "withheld", None, None),
        ("sip:anonymous@anonymous.invalid", Form.WITHHELD, "withheld", None, None),
        ("anonymous.invalid", Form.WITHHELD, "withheld", None, None),
        ("UNAVAILABLE;tag=1", Form.WITHHELD, "withheld", None, None),
        ("13800138000@example.org", Form.INVALID, "invalid", None, None),
        ("1" * 25, Form.INVALID, "invalid", None, None),
    ],
)
def test_forms(raw, form, number_class, key, e164):
    """Each written form leads to one class, one home key and one E.164 form."""
    number = read_cli(raw, CN)
    assert (number.form, number.number_class, number.key, number.e164) == (form, number_class, key, e164)
    assert number.raw == raw


@pytest.mark.parametrize(
    ("raw", "number_class", "region", "group"),
    [
        ("+85261234567", "intl_hk", "hk", "hmt"),
        ("0085362345678", "intl_mo", "mo", "hmt"),
        ("+886912345678", "intl_tw", "tw", "hmt"),
        ("+12125550100", "intl_us", "us", "intl"),
        ("+14165550100", "intl_ca", "ca", "intl"),
        ("+77012345678", "intl_kz", "kz", "intl"),
        ("+79161234567", "intl_ru", "ru", "intl"),
        ("+441534123456", "intl_je", "je", "intl"),
        ("+80012345678", "intl_001", "001", "intl"),
        ("+8521", "intl_bad_length", "hk", "hmt"),
        ("+210123456789", "intl_bad_cc", None, None),
        ("00", "intl_bad_cc", None, None),
        ("+4" + "9" * 20, "intl_bad_length", "de", "intl"),
    ],
)
def test_foreign_numbers(raw, number_class, region, group):
    """A foreign number has the region of its longest prefix and the consent group of that region."""
    number = read_cli(raw, CN)
    assert (number.number_class, number.region, number.group) == (number_class, region, group)


def test_form_decides_between_fixed_and_text_port():
    """+861065551234 is fixed in Beijing; the bare 1065551234 is a text port."""
    assert read_cli("+861065551234", CN).number_class == "fixed"
    assert read_cli("1065551234", CN).number_class == "sms_port"


def test_one_zero_apart():
    """0886 is Nujiang in Yunnan and 00886 is Taiwan; 0852 is no area code and never Hong Kong."""
    assert read_cli("08863621234", CN).number_class == "fixed"
    assert CN.area("8863621234").province == "yunnan"
    assert read_cli("00886912345678", CN).number_class == "intl_tw"
    assert read_cli("085261234567", CN).number_class == "invalid"
    assert read_cli("08523621234", CN).number_class == "invalid"


def test_a_95_number_of_ten_digits_is_not_yinchuan():
    """Bare 9516123456 is a malformed 95 number; only +86 makes it Yinchuan."""
    assert read_cli("9516123456", CN).number_class == "svc95_bad_length"
    assert read_cli("+869516123456", CN).key == "09516123456"


def test_prefix_is_never_guessed():
    """Country code and number without prefix are foreign only where the trunk has e164_bare."""
    assert read_cli("13802135500", CN).number_class == "mobile_cm"
    assert read_cli("13802135500", CN, ["e164_bare"]).number_class == "intl_us"
    assert read_cli("85261234567", CN).number_class == "invalid"
    bare = read_cli("85261234567", CN, ["e164_bare"])
    assert (bare.form, bare.number_class, bare.key) == (Form.E164_BARE, "intl_hk", "+85261234567")
    assert read_cli("8613800138000", CN).number_class == "invalid"
    assert read_cli("8613800138000", CN, ["e164_bare"]).key == "13800138000"
    assert read_cli("95588", CN, ["e164_bare"]).number_class == "svc95_customer"


@pytest.mark.parametrize(
    "raw",
    [
        "1230613800138000",
        "1232113800138000",
        "1799013800138000",
        "abc13800138000",
        "++8613800138000",
        "+008613800138000",
        "\uff11\uff13\uff18\uff10\uff10\uff11\uff13\uff18\uff10\uff10\uff10",  # full-width digits
        "١٣٨٠٠١٣٨٠٠٠",
        "1380013abcd",
        "*6713800138000",
        "8613800138000",
        "138 0013 8000",
        "138-0013-8000",
        "13800138000#",
        "13800138000\n",
        " 13800138000",
        "%2B8613800138000",
        "${CALLERID(num)}",
        "13800138000'--",
        "tel:13800138000",
    ],
)
def test_hostile_rewrites(raw):
    """No string that phonenumbers rewrites, and no decorated one, becomes a Chinese mobile."""
    for number in (read_cli(raw, CN), read_cli(raw, CN, ["plus", "idd00"])):
        assert number.key is None
        assert number.e164 is None
        assert not number.number_class.startswith("mobile_") or number.number_class.endswith(BAD_LENGTH)


@given(st.one_of(st.text(), written, st.text("+0123456789;@ ", max_size=300)))
@example("+")
@example("0")
@example("00")
@example("+86")
@example("\ud800")
@example("9" * 10_000)
def test_reading_is_total(raw):
    """Any string is read as a Number: nothing raises, and what is kept is bounded."""
    for number in (read_cli(raw, CN), read_cli(raw, CN, ["e164_bare"]), read_callee(raw, CN)):
        assert isinstance(number, Number)
        assert number.raw == raw[:200]
        assert number.e164 is None or len(number.e164) <= 16
        valid = CN.class_rules(number.number_class) is not None
        assert valid == (number.key is not None)


@given(st.text(min_size=1), st.text("+0123456789", min_size=1, max_size=16), st.integers(0, 16))
def test_only_plus_and_ascii_digits_are_a_number(dirt, digits, at):
    """A string with any other character before the parameters is never a number."""
    raw = digits[:at] + dirt + digits[at:]
    before = raw.partition(";")[0]
    number = read_cli(raw, CN)
    if not set(before) <= set("+0123456789"):
        assert number.key is None
        assert number.number_class in NO_NUMBER


@given(written, st.booleans())
def test_key_round_trip(raw, e164_bare):
    """The home form of a valid number is its own home form, as CLI, as callee and as a typed entry."""
    number = read_cli(raw, CN, ["e164_bare"] if e164_bare else ())
    if number.key is not None:
        assert home_key(number.key, CN) == number.key
        again = read_cli(number.key, CN)
        assert (again.number_class, again.e164) == (number.number_class, number.e164)


@given(written)
def test_e164_reads_as_the_same_number(raw):
    """Where a number has an E.164 form, that form leads to the same key and class."""
    number = read_cli(raw, CN)
    if number.e164 is not None:
        again = read_cli(number.e164, CN)
        assert (again.key, again.number_class, again.e164) == (number.key, number.number_class, number.e164)


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("13800138000", "13800138000"),
        ("+8613800138000", "13800138000"),
        (" 057186554321\n", "057186554321"),
        ("95588", "95588"),
        ("+85261234567", "+85261234567"),
        ("0085261234567", "+85261234567"),
    ],
)
def test_home_key(typed, key):
    """What an operator types becomes the key under which the CLI will be looked up."""
    assert home_key(typed, CN) == key


@pytest.mark.parametrize("typed", ["", "abc", "138-0013-8000", "85261234567", "955881", "+999123456", "x" * 500])
def test_home_key_refuses_with_a_remedy(typed):
    """A number that no CLI can be is refused in one short line that says how to write one."""
    with pytest.raises(BadNumber, match="write") as refused:
        home_key(typed, CN)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize("raw", ["110", "119", "120", "122", "0571110", "+86110", "010120"])
def test_emergency_callee(raw):
    """An emergency number is known as callee, alone, after an area code and after +86."""
    assert read_callee(raw, CN).number_class == "emergency"


@pytest.mark.parametrize(
    ("raw", "number_class", "key"),
    [
        ("8613957100001", "mobile_cm", "13957100001"),
        ("8657186554321", "fixed", "057186554321"),
        ("13957100001", "mobile_cm", "13957100001"),
        ("86139571000011", "invalid", None),
        ("86", "invalid", None),
        ("85261234567", "invalid", None),
    ],
)
def test_callee_in_e164_without_plus(raw, number_class, key):
    """A callee that begins with the home country code is the number after it; no other code is guessed."""
    number = read_callee(raw, CN)
    assert (number.number_class, number.key) == (number_class, key)


@pytest.mark.parametrize("raw", ["110;13957100001", "110;", ";", "13957100001;user=phone", "110,13957100001", "110 "])
def test_callee_is_not_cut(raw):
    """The PBX dials the whole string, so no part of it is a number: such a call is no emergency call."""
    number = read_callee(raw, CN)
    assert (number.form, number.number_class, number.key) == (Form.INVALID, "invalid", None)


def test_a_word_is_no_callee():
    """A withheld token has a meaning as CLI only."""
    assert read_callee("anonymous", CN).form is Form.INVALID


def test_every_country_code_is_known():
    """The pack has a region for each foreign country code that phonenumberslite knows."""
    for cc, regions in COUNTRY_CODE_TO_REGION_CODE.items():
        if str(cc) != CN.cc:
            region = CN.foreign_region(str(cc))
            assert region is not None, cc
            assert region.code == regions[0].lower(), cc
            assert all(code.lower() in CN.regions for code in regions), cc


def test_wire_formats_are_forms():
    """A trunk's wire_format lists forms that the reader reports."""
    assert set(WIRE_FORMATS) <= {form.value for form in Form}


# -- gateways and dates ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "prefixes", "number_class", "key"),
    [
        ("99913800138000", ["999"], "mobile_cm", "13800138000"),
        ("13800138000", ["999"], "mobile_cm", "13800138000"),
        ("*113800138000", ["*1"], "mobile_cm", "13800138000"),
        ("9913800138000", ["9", "99"], "mobile_cm", "13800138000"),
        ("99913800138000", ["9"], "invalid", None),
        ("999+8613800138000", ["999"], "mobile_cm", "13800138000"),
        ("999", ["999"], "invalid", None),
        ("999anonymous", ["999"], "withheld", None),
        ("999abc13800138000", ["999"], "invalid", None),
        ("99913800138000", [], "invalid", None),
    ],
)
def test_cli_prefixes(raw, prefixes, number_class, key):
    """A prefix that a gateway is known to add is cut once, the longest one; the rest must be a number by itself."""
    number = read_cli(raw, CN, cli_prefixes=prefixes)
    assert (number.raw, number.number_class, number.key) == (raw, number_class, key)


def test_what_was_read_is_kept():
    """``written`` has plus and digits of what was read, and nothing else that a caller wrote."""
    assert read_cli("999+8613800138000;x=1", CN, cli_prefixes=["999"]).written == "+8613800138000"
    for raw in ("anonymous", "", "13800138000 ", "abc", "1" * 25):
        assert read_cli(raw, CN).written == ""


def test_class_at_a_time():
    """The class of a number is that of the time of the call; without one it is that after all dates."""
    before, after = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
    read = [read_cli("9501312345", CN, at=at).number_class for at in (before, after, None)]
    assert read == ["privacy_x", "svc95_bad_length", "svc95_bad_length"]
    assert read_callee("9501312345", CN, at=before).key == "9501312345"


def test_privacy_number_is_longer_than_e164():
    """A 700 number has 15 digits, 17 with the country code: it is kept whole, and has no E.164 form."""
    number = read_cli("+86700123456789012", CN)
    assert (number.number_class, number.key, number.e164) == ("privacy_700", "700123456789012", None)


# -- other countries ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pack_id", "raw", "form", "number_class", "key", "e164"),
    [
        ("sg", "61234567", Form.BARE, "fixed", "61234567", "+6561234567"),
        ("sg", "+6561234567", Form.PLUS, "fixed", "61234567", "+6561234567"),
        ("sg", "0016561234567", Form.IDD00, "fixed", "61234567", "+6561234567"),
        ("sg", "00185261234567", Form.IDD00, "intl_hk", "+85261234567", "+85261234567"),
        ("sg", "0085261234567", Form.IDD00, "intl_bad_length", None, None),
        ("sg", "061234567", Form.BARE, "invalid", None, None),
        ("sg", "91234567", Form.BARE, "mobile_any", "91234567", "+6591234567"),
        ("sg", "995", Form.BARE, "emergency", "995", None),
        ("gb", "07700900123", Form.NATIONAL0, "mobile_any", "07700900123", "+447700900123"),
        ("gb", "+447700900123", Form.PLUS, "mobile_any", "07700900123", "+447700900123"),
        ("gb", "7700900123", Form.BARE, "invalid", None, None),
        ("gb", "00442079460123", Form.IDD00, "fixed", "02079460123", "+442079460123"),
        ("gb", "0044 2079460123", Form.INVALID, "invalid", None, None),
        ("gb", "+8613800138000", Form.PLUS, "intl_cn", "+8613800138000", "+8613800138000"),
        ("in", "9812345678", Form.BARE, "mobile_any", "9812345678", "+919812345678"),
        ("in", "09812345678", Form.NATIONAL0, "mobile_any", "9812345678", "+919812345678"),
        ("in", "08022345678", Form.NATIONAL0, "fixed", "08022345678", "+918022345678"),
        ("in", "+918088123456", Form.PLUS, "mobile_any", "8088123456", "+918088123456"),
        ("in", "+911123456789", Form.PLUS, "fixed", "01123456789", "+911123456789"),
        ("de", "030123456", Form.NATIONAL0, "fixed", "030123456", "+4930123456"),
        ("de", "015112345678", Form.NATIONAL0, "mobile_any", "015112345678", "+4915112345678"),
        ("de", "+4916012345678", Form.PLUS, "mobile_any", "016012345678", "+4916012345678"),
        ("de", "0151123456", Form.NATIONAL0, "mobile_any_bad_length", None, None),
        ("fi", "0412345678", Form.NATIONAL0, "mobile_any", "0412345678", "+358412345678"),
        ("fi", "990358412345678", Form.IDD00, "mobile_any", "0412345678", "+358412345678"),
        ("fi", "0912345678", Form.NATIONAL0, "fixed", "0912345678", "+358912345678"),
        ("fi", "+46701234567", Form.PLUS, "intl_se", "+46701234567", "+46701234567"),
    ],
)
def test_forms_elsewhere(pack_id, raw, form, number_class, key, e164):
    """With one to three digits of country code, other international prefixes and no trunk prefix: data alone."""
    number = read_cli(raw, load(pack_id))
    assert (number.form, number.number_class, number.key, number.e164) == (form, number_class, key, e164)


@pytest.mark.parametrize(
    ("pack_id", "raw", "key"),
    [
        ("sg", "6591234567", "91234567"),
        ("sg", "91234567", "91234567"),
        ("sg", "65123456", "65123456"),
        ("gb", "447700900123", "07700900123"),
        ("gb", "07700900123", "07700900123"),
        ("in", "919812345678", "9812345678"),
        ("fi", "358412345678", "0412345678"),
    ],
)
def test_callee_elsewhere(pack_id, raw, key):
    """A callee is found as dialled at home, or in E.164 without its plus; a whole number of home comes first."""
    assert read_callee(raw, load(pack_id)).key == key


@pytest.mark.parametrize("pack", PACKS, ids=lambda pack: pack.id)
def test_examples_and_emergency(pack):
    """The examples of a pack are home forms, and its emergency numbers are known as callees, after +cc too."""
    assert [home_key(example, pack) for example in pack.examples] == list(pack.examples)
    for number in pack.emergency:
        assert read_callee(number, pack).number_class == "emergency"
        assert read_callee(f"+{pack.cc}{number}", pack).number_class == "emergency"
        assert pack.never_block(number)


# -- properties that hold for every pack -------------------------------------------------------------------

any_pack = st.sampled_from(PACKS)
written_anywhere = st.builds(
    lambda pack, before, number, rest: (pack, before.format(cc=pack.cc, idd=pack.idd[-1]) + number + rest),
    any_pack,
    st.sampled_from(["", "+", "{idd}", "+{cc}", "{idd}{cc}", "0", "{cc}", "+852"]),
    st.sampled_from(["", "1", "2", "6", "7", "8", "9", "138", "571", "95", "700", "1800"]),
    st.text("0123456789", max_size=13),
)
MOMENTS = (None, datetime(2020, 1, 1, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC))


@given(any_pack, st.one_of(st.text(), st.text("+0123456789;@ ", max_size=300)), st.sampled_from(MOMENTS))
@example(CN, "\x00", None)
@example(CN, "9" * 24, None)
def test_no_string_raises_in_any_pack(pack, raw, at):
    """Any string is read in any pack at any time; what has a key is of a valid class, and the other way round."""
    for number in (
        read_cli(raw, pack, at=at),
        read_cli(raw, pack, ["e164_bare"], cli_prefixes=["9", "*"], at=at),
        read_callee(raw, pack, at=at),
    ):
        assert (pack.class_rules(number.number_class) is not None) == (number.key is not None)
        assert number.e164 is None or (number.e164[0] == "+" and number.e164[1:].isdigit() and len(number.e164) <= 16)
        assert set(number.written) <= set("+0123456789")


@given(written_anywhere)
def test_key_round_trip_in_any_pack(what):
    """The home form of a valid number reads as the same number, as CLI, as callee and as typed."""
    pack, raw = what
    number = read_cli(raw, pack)
    if number.key is not None:
        assert home_key(number.key, pack) == number.key
        for again in (read_cli(number.key, pack), read_callee(number.key, pack)):
            assert (again.key, again.number_class, again.e164) == (number.key, number.number_class, number.e164)
        assert pack.never_block(number.key) == pack.class_rules(number.number_class).never_block


def numbers_of(pack, kind):
    """National significant numbers of a kind, as libphonenumber has them, and the pack."""
    known = getattr(PhoneMetadata.metadata_for_region(pack.country), kind)
    pattern = re.compile(known.national_number_pattern, re.ASCII)
    numbers = st.from_regex(pattern, fullmatch=True).filter(lambda number: len(number) in known.possible_length)
    return st.tuples(st.just(pack), numbers)


@given(st.one_of([numbers_of(pack, "mobile") for pack in PACKS]))
def test_every_mobile_of_a_country_is_one_in_its_pack(what):
    """A mobile number that libphonenumber calls valid is of a mobile class (or satellite), and has a key."""
    pack, digits = what
    number = read_cli(f"+{pack.cc}{digits}", pack)
    assert number.number_class.startswith(("mobile_", "satellite")), (pack.id, digits)
    assert number.key is not None


@given(st.one_of([numbers_of(pack, "fixed_line") for pack in PACKS if pack.id != "cn"]))
def test_every_fixed_number_of_a_country_is_read(what):
    """A fixed number that libphonenumber calls valid has a key. (China's own table knows which areas there are.)"""
    pack, digits = what
    assert read_cli(f"+{pack.cc}{digits}", pack).key is not None, (pack.id, digits)


class Counting(dict):
    """A dictionary that counts how often it is read."""

    reads = 0

    def get(self, key, default=None):
        Counting.reads += 1
        return super().get(key, default)


def counted(pack):
    """The pack with every table that a number is looked up in counting its reads."""
    plan = pack._plan
    plan = replace(
        plan,
        national={form: Counting(table) for form, table in plan.national.items()},
        areas=Counting(plan.areas),
        dno=Counting(plan.dno),
    )
    return replace(pack, _plan=plan, _region_prefixes=Counting(pack._region_prefixes))


COUNTED = [counted(pack) for pack in PACKS]


@given(st.sampled_from(COUNTED), st.one_of(written, st.text("+0123456789", max_size=300), st.text(max_size=2000)))
@example(COUNTED[0], "+86" + "9" * 21)
@example(COUNTED[0], "0" + "9" * 23)
@example(COUNTED[0], "9" * 100_000)
def test_work_is_bounded(pack, raw):
    """No string costs more than 64 table reads to read and screen: bounded by the pack, not by the caller."""
    Counting.reads = 0
    number = read_cli(raw, pack, ["e164_bare"])
    read_callee(raw, pack)
    pack.dno(number.key, number.written)
    assert Counting.reads <= 64
    assert len(number.raw) <= 200
    assert all(claims < 4 for table in pack._plan.national.values() for claims in map(len, table.values()))


FULL_WIDTH = str.maketrans("0123456789", "\uff10\uff11\uff12\uff13\uff14\uff15\uff16\uff17\uff18\uff19")
ARABIC = str.maketrans("0123456789", "\u0660\u0661\u0662\u0663\u0664\u0665\u0666\u0667\u0668\u0669")
mobile = st.from_regex(r"1(3[5-9]|5[0-35-9]|8[0-9]|70)[0-9]{8}", fullmatch=True)
# The rewrites of section 5 of the numbering reference: phonenumbers turns each of these into the mobile.
rewritten = st.one_of(
    st.builds(
        lambda code, number: code + number, st.from_regex(r"(1[12][0-9]{3}|179[0-9]{2})", fullmatch=True), mobile
    ),
    st.builds(
        lambda dirt, number: dirt + number,
        st.from_regex(r"[a-z]{1,5}|[*#][0-9]{2}|\+\+86|\+0086|tel:| ", fullmatch=True),
        mobile,
    ),
    st.builds(
        lambda number, letters: number[:7] + letters,
        mobile,
        st.text("abcdefghijkmnopqrstuvwxyz", min_size=4, max_size=4),
    ),
    st.builds(
        lambda number, at, mark: number[:at] + mark + number[at:],
        mobile,
        st.integers(1, 10),
        st.sampled_from("-. /()\u2010\u200b"),
    ),
    mobile.map(lambda number: number.translate(FULL_WIDTH)),
    mobile.map(lambda number: number.translate(ARABIC)),
    mobile.map(lambda number: "86" + number),
)


@given(rewritten)
def test_no_rewrite_becomes_a_number(raw):
    """Carrier codes, letters, doubled prefixes, marks and foreign digits never lead to a Chinese mobile."""
    for wire_format in ((), ("plus", "idd00"), ("plus", "idd00", "national0", "bare")):
        number = read_cli(raw, CN, wire_format)
        assert (number.key, number.e164) == (None, None)
    if raw == raw.strip():  # white space around what an operator types is no rewrite
        with pytest.raises(BadNumber):
            home_key(raw, CN)
