"""What a string on the wire is read as, and what it must never be read as."""

import csv
from importlib.resources import files

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from phonenumbers import COUNTRY_CODE_TO_REGION_CODE

from pbxguard.errors import BadNumber
from pbxguard.packs import load
from pbxguard.screening.numbering import Form, Number, home_key, read_callee, read_cli
from pbxguard.screening.pack import _WIRE_FORMATS, BAD_LENGTH

CN = load("cn")
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
    assert set(_WIRE_FORMATS) <= {form.value for form in Form}
