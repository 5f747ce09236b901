"""Which bodies are JSON: a table like JSONTestSuite's, then the fast and the slow check compared."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from registry.errors import BadBody
from registry.http import json_check
from registry.http.json_check import MAX_DEPTH, BadJson, check_json
from registry.http.json_cut import Part
from registry.http.turns import at_once
from tests.json_reference import scan


def nested(levels: int, opening: bytes = b"[", closing: bytes = b"]", core: bytes = b"") -> bytes:
    return opening * levels + core + closing * levels


VALID = {
    "zero": b"0",
    "minus zero": b"-0",
    "integer": b"120",
    "fraction": b"0.10",
    "exponent": b"1e5",
    "exponent, capital and signed": b"-1E+05",
    "exponent of zero": b"0e1",
    "negative exponent": b"0.1e-2",
    "infinite as a double": b"1e999",
    "very negative": b"-9e99999",
    "integer of 5,000 digits": b"9" * 5000,
    "fraction of 5,000 digits": b"0." + b"1" * 5000,
    "integer of 100,000 digits": b"-" + b"7" * 100_000,
    "true": b"true",
    "false": b"false",
    "null": b"null",
    "empty string": b'""',
    "string": b'"zone"',
    "every short escape": rb'"\"\\\/\b\f\n\r\t"',
    "escaped character": rb'"\u00e9\u00E9"',
    "escaped nul": rb'"\u0000"',
    "surrogate pair": rb'"\ud83d\ude00"',
    "lone high surrogate": rb'"\ud800"',
    "lone low surrogate": rb'"\udfff"',
    "high surrogate, then a letter": rb'"\uD800a"',
    "high surrogate, then another escape": rb'"\uD800\n"',
    "two high surrogates": rb'"\ud800\ud800"',
    "pair the wrong way round": rb'"\ude00\ud83d"',
    "high surrogate, then no surrogate": rb'"\ud800\u0041"',
    "lone surrogate as a key": rb'{"\ud800":1}',
    "escaped backslash before ud800": rb'["\\ud800", "\ud800"]',
    "lone surrogate after an escaped backslash": rb'"\\\ud800"',
    "delete": b'"\x7f"',
    "two bytes": '"é"'.encode(),
    "three bytes": '"€"'.encode(),
    "four bytes": '"😀"'.encode(),
    "non-characters": '"\ufffe\uffff"'.encode(),
    "byte order mark inside a string": '"\ufeff"'.encode(),
    "line separator": '"\u2028"'.encode(),
    "empty array": b"[]",
    "empty array with a space": b"[ ]",
    "empty object": b"{}",
    "empty object with a space": b"{ }",
    "array": b'[1, "a", null, [], {}]',
    "object": b'{"a": {"b": [1, 2]}, "": 0}',
    "duplicate keys": b'{"a":1,"a":2}',
    "white space all around": b"\t\r\n [\t\r\n 1 \t\r\n,\t\r\n 2 \t\r\n]\t\r\n ",
    "white space in an object": b' { "a" : 1 , "b" : 2 } ',
    "brackets in a string": b'"' + b"[{" * 1000 + b'"',
    "brackets in a string after an escaped quote": rb'"\"' + b"[{" * 1000 + b'"',
    "brackets in a string after an escaped backslash": rb'["\\","' + b"[{" * 1000 + b'"]',
    "arrays as deep as allowed": nested(MAX_DEPTH),
    "objects as deep as allowed": nested(MAX_DEPTH, b'{"a":', b"}", b"1"),
    "as deep as allowed, with white space": nested(MAX_DEPTH, b" [ ", b" ] "),
    "as deep as allowed, with a lone surrogate": nested(MAX_DEPTH, core=rb'"\ud800"'),
    "as deep as allowed, then flat": b"[" + nested(MAX_DEPTH - 1) + b",[]" * 2000 + b"]",
    "wide": b"[" + b"[]," * 200_000 + b"{}]",
}

INVALID = {
    # name: (body, position, words of the reason)
    "empty": (b"", 0, "empty"),
    "only white space": (b" \n ", 3, "empty"),
    "nul": (b"\x00", 0, "unexpected 0x00"),
    "NaN": (b"NaN", 0, 'unexpected "N"'),
    "nan in an array": (b"[nan]", 1, 'unexpected "n"'),
    "Infinity": (b"Infinity", 0, 'unexpected "I"'),
    "minus Infinity": (b"[-Infinity]", 1, 'unexpected "-"'),
    "True": (b"True", 0, 'unexpected "T"'),
    "a word cut short": (b"tru", 0, 'unexpected "t"'),
    "a word too long": (b"truex", 4, 'unexpected "x"'),
    "nullnull": (b"nullnull", 4, 'unexpected "n"'),
    "bare word": (b"zone", 0, 'unexpected "z"'),
    "single quotes": (b"'a'", 0, "unexpected"),
    "leading zero": (b"01", 1, 'unexpected "1"'),
    "leading zero, negative": (b"[-01]", 3, 'unexpected "1"'),
    "two zeros": (b"00", 1, 'unexpected "0"'),
    "plus": (b"+1", 0, 'unexpected "+"'),
    "minus alone": (b"-", 0, 'unexpected "-"'),
    "two minuses": (b"--1", 0, 'unexpected "-"'),
    "no fraction": (b"1.", 1, 'unexpected "."'),
    "no integer": (b".5", 0, 'unexpected "."'),
    "fraction, then exponent missing": (b"1.5e", 3, 'unexpected "e"'),
    "point before exponent": (b"1.e1", 1, 'unexpected "."'),
    "two fractions": (b"1.5.5", 3, 'unexpected "."'),
    "exponent of a sign": (b"1E+", 1, 'unexpected "E"'),
    "hexadecimal": (b"0x1", 1, 'unexpected "x"'),
    "underscore": (b"1_0", 1, 'unexpected "_"'),
    "digits of another script": ("١".encode(), 0, 'unexpected "١"'),
    "two values": (b"1 2", 2, 'unexpected "2"'),
    "trailing garbage": (b"[1] x", 4, 'unexpected "x"'),
    "trailing bracket": (b"[]]", 2, 'unexpected "]"'),
    "trailing comma after the value": (b"1,", 1, 'unexpected ","'),
    "trailing nul": (b"1\x00", 1, "unexpected 0x00"),
    "comment": (b"1 // one", 2, 'unexpected "/"'),
    "form feed": (b"\x0c1", 0, "unexpected 0x0c"),
    "vertical tab": (b"[\x0b1]", 1, "unexpected 0x0b"),
    "no-break space": ("\u00a01".encode(), 0, "unexpected 0xc2"),
    "line separator": ("\u20281".encode(), 0, "unexpected 0xe2"),
    "byte order mark": (b"\xef\xbb\xbf1", 0, "byte order mark"),
    "UTF-16": ("[1]".encode("utf-16"), 0, "invalid UTF-8 (0xff)"),
    "UTF-16 without a mark": ("[1]".encode("utf-16-le"), 1, "unexpected 0x00"),
    "UTF-32": ("1".encode("utf-32-le"), 1, "unexpected 0x00"),
    "string without end": (b'"abc', 4, "unexpected end"),
    "string without end, escaped quote": (rb'"a\"', 4, "unexpected end"),
    "string ends in a backslash": (b'"a\\', 3, "unexpected end"),
    "newline in a string": (b'"a\nb"', 2, "a control character (0x0a)"),
    "nul in a string": (b'["\x00"]', 2, "a control character (0x00)"),
    "unit separator in a key": (b'{"\x1f":1}', 2, "a control character (0x1f)"),
    "tab in a string after a lone surrogate": (b'"\\ud800\t"', 7, "a control character (0x09)"),
    "unknown escape": (rb'"\x41"', 1, "an invalid escape"),
    "escaped single quote": (rb'["\'"]', 2, "an invalid escape"),
    "escape cut short": (rb'"\u12"', 1, "an invalid escape"),
    "escape of letters": (rb'"\u00g0"', 1, "an invalid escape"),
    "capital U": (rb'"\U0041"', 1, "an invalid escape"),
    "surrogate cut short": (rb'"\uD8zz"', 1, "an invalid escape"),
    "bad second half of a pair": (rb'"\ud83d\ude0"', 7, "an invalid escape"),
    "trailing comma": (b"[1,]", 3, 'unexpected "]"'),
    "leading comma": (b"[,1]", 1, 'unexpected ","'),
    "two commas": (b"[1,,2]", 3, 'unexpected ","'),
    "no comma": (b"[1 2]", 3, 'unexpected "2"'),
    "colon in an array": (b'["a":1]', 4, 'unexpected ":"'),
    "array without end": (b"[1", 2, "unexpected end"),
    "array without end after a comma": (b"[1,", 3, "unexpected end"),
    "array closed by a brace": (b"[1}", 2, 'unexpected "}"'),
    "brackets crossed": (b'[{"a":1]}', 7, 'unexpected "]"'),
    "closing bracket alone": (b"]", 0, 'unexpected "]"'),
    "object without end": (b'{"a":1', 6, "unexpected end"),
    "opening brace alone": (b"{", 1, "unexpected end"),
    "object closed by a bracket": (b'{"a":1]', 6, 'unexpected "]"'),
    "trailing comma in an object": (b'{"a":1,}', 7, 'unexpected "}"'),
    "comma alone in an object": (b"{,}", 1, 'unexpected ","'),
    "no colon": (b'{"a" 1}', 5, 'unexpected "1"'),
    "two colons": (b'{"a"::1}', 5, 'unexpected ":"'),
    "no value": (b'{"a":}', 5, 'unexpected "}"'),
    "key alone": (b'{"a"}', 4, 'unexpected "}"'),
    "key without quotes": (b"{a:1}", 1, 'unexpected "a"'),
    "key of digits": (b"{1:1}", 1, 'unexpected "1"'),
    "no comma in an object": (b'{"a":1 "b":2}', 7, "unexpected"),
    "urlencoded form": (b"a=1&b=2", 0, 'unexpected "a"'),
    "invalid start byte": (b'"a\xff"', 2, "invalid UTF-8 (0xff)"),
    "lone continuation byte": (b'"\x80"', 1, "invalid UTF-8 (0x80)"),
    "sequence cut short": (b'"\xe2\x82"', 1, "invalid UTF-8 (0xe2)"),
    "overlong": (b'"\xc0\xaf"', 1, "invalid UTF-8 (0xc0)"),
    "surrogate as bytes": (b'"\xed\xa0\x80"', 1, "invalid UTF-8 (0xed)"),
    "past the last character": (b'"\xf4\x90\x80\x80"', 1, "invalid UTF-8 (0xf4)"),
    "invalid UTF-8 in a key": (b'{"a\xff":1}', 3, "invalid UTF-8 (0xff)"),
    "Latin-1": (b'"\xe9"', 1, "invalid UTF-8 (0xe9)"),
}

TOO_DEEP = {
    "one array too deep": (nested(MAX_DEPTH + 1), MAX_DEPTH),
    "one object too deep": (nested(MAX_DEPTH + 1, b'{"a":', b"}", b"1"), MAX_DEPTH * 5),
    "past the fast parser's own bound": (nested(2000), MAX_DEPTH),
    "a hundred thousand deep": (nested(100_000), MAX_DEPTH),
    "forty thousand objects deep": (nested(40_000, b'{"a":', b"}", b"1"), MAX_DEPTH * 5),
    "deep and broken": (nested(2000)[:-1], MAX_DEPTH),
    "never closed": (b"[" * 100_000, MAX_DEPTH),
    "with a lone surrogate": (nested(MAX_DEPTH + 1, core=rb'"\ud800"'), MAX_DEPTH),
    "after a string of brackets": (b'["]]]]",' + nested(MAX_DEPTH) + b"]", MAX_DEPTH + 7),
    "after a string with an escaped quote": (rb'["\"]]",' + nested(MAX_DEPTH) + b"]", MAX_DEPTH + 7),
}


@pytest.mark.parametrize("body", VALID.values(), ids=VALID)
def test_accepts(body: bytes) -> None:
    check_json(body)
    scan(body)


@pytest.mark.parametrize(("body", "position", "reason"), INVALID.values(), ids=INVALID)
def test_refuses_with_the_position(body: bytes, position: int, reason: str) -> None:
    with pytest.raises(BadJson) as caught:
        check_json(body)
    error = caught.value
    assert (error.position, error.code) == (position, "bad_json")
    assert reason in error.reason
    assert str(error) == f"The body is not JSON: {error.reason} at byte {position}."


@pytest.mark.parametrize(("body", "position"), TOO_DEEP.values(), ids=TOO_DEEP)
def test_refuses_what_is_too_deep(body: bytes, position: int) -> None:
    with pytest.raises(BadJson) as caught:
        check_json(body)
    assert (caught.value.position, caught.value.code) == (position, "too_deep")
    assert str(caught.value) == f"The body is nested more than {MAX_DEPTH} levels deep, at byte {position}."


def test_is_an_error_of_the_domain() -> None:
    assert issubclass(BadJson, BadBody)


def test_a_valid_body_is_accepted_from_deep_in_the_stack() -> None:
    """The fast parser counts the interpreter's frames as well; the slow road accepts what it refuses here."""

    def descend(levels: int) -> None:
        if levels:
            return descend(levels - 1)
        return check_json(nested(MAX_DEPTH))

    descend(600)


LARGE = 16 * 1024 * 1024


def test_a_large_body_is_refused_at_its_position() -> None:
    body = b"[" + b"1," * 300_000 + b"]"
    with pytest.raises(BadJson) as caught:
        check_json(body)
    assert caught.value.position == len(body) - 1


@pytest.mark.parametrize("levels", [MAX_DEPTH, 5000])
def test_a_large_body_that_is_too_deep(levels: int) -> None:
    with pytest.raises(BadJson) as caught:
        check_json(b"[" + b"[]," * 300_000 + nested(levels) + b"]")
    assert (caught.value.position, caught.value.code) == (900_000 + MAX_DEPTH, "too_deep")


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64])
@pytest.mark.parametrize(
    "body",
    [
        rb'[{"a]]":["\"}","\\",{}]},[[]]]',
        rb'["\\\"[[[[","\\",[[[]]],"[[[["]',
        '["\u00e9é😀[[[[",[["é"],[[1]]]]'.encode(),
    ],
)  # fmt: skip
def test_depth_counts_brackets_outside_strings(
    monkeypatch: pytest.MonkeyPatch, body: bytes, piece: int
) -> None:
    """However the body falls into pieces: escapes and characters may be cut by their ends."""
    monkeypatch.setattr(json_check, "PIECE", max(piece, 4))
    check_json(body, 4)
    with pytest.raises(BadJson) as caught:
        check_json(body, 3)
    assert caught.value.code == "too_deep"
    with pytest.raises(BadJson) as told:
        scan(body, 3)
    assert caught.value.position == told.value.position


PIECES = st.sampled_from(
    [
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b":",
        b'"',
        b"\\",
        b"\\u",
        b"d800",
        b"dc00",
        b"0",
        b"1",
        b"-",
        b"+",
        b".",
        b"e",
        b"E",
    ]
    + [
        b"true",
        b"null",
        b"fals",
        b"a",
        b" ",
        b"\n",
        b"\x00",
        b"\x0c",
        b"\x7f",
        b"\xc3\xa9",
        b"\xff",
        b"\xed\xa0\x80",
    ]
    + [b'"a"', b'"a":', rb"\n", rb"\/", rb"\\", rb"\ud800", b"[]", b"{}", b"12.5e-3"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(st.characters()), inner, max_size=5),
    max_leaves=20,
)  # fmt: skip


def verdict(check: object, body: bytes) -> bool:
    return told(check, body) is None


def told(check: object, body: bytes) -> tuple[int, str] | ValueError | None:
    try:
        check(body)  # type: ignore[operator]
    except ValueError as error:
        return error
    except BadJson as error:
        return error.position, error.reason
    return None


def slow(body: bytes) -> None:
    body.decode("utf-8")
    scan(body)


def standard(body: bytes) -> None:
    """The standard library's decoder with its liberties taken away, as a judge from elsewhere."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    json.loads(body.decode("utf-8"), parse_constant=refuse, parse_int=str)


@settings(max_examples=2000, deadline=None)
@given(st.lists(PIECES, max_size=14).map(b"".join))
@example(rb'"\ud800\udc00"')
@example(b"-")
def test_all_judges_agree_on_crumbs(body: bytes) -> None:
    assert verdict(check_json, body) == verdict(slow, body) == verdict(standard, body)


@settings(max_examples=500, deadline=None)
@given(VALUES, st.booleans(), st.data())
def test_all_judges_agree_on_damaged_values(value: object, ascii_only: bool, data: st.DataObject) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    if ascii_only:
        assert verdict(check_json, body)
    at = data.draw(st.integers(0, len(body)))
    damaged = body[:at] + data.draw(PIECES | st.just(b"")) + body[at + data.draw(st.integers(0, 2)) :]
    for candidate in (body, damaged):
        assert verdict(check_json, candidate) == verdict(slow, candidate) == verdict(standard, candidate)
    found = told(slow, damaged)
    assert isinstance(found, ValueError) or told(check_json, damaged) == found


def walked(body: bytes) -> None:
    """The way of long bodies, whatever the size."""
    at_once(json_check._walking(body, MAX_DEPTH))


BODIES = st.lists(PIECES, max_size=14).map(b"".join) | st.builds(
    lambda value, ascii_only, at, crumb, cut: (
        (text := json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"))[
            : at % (len(text) + 1)
        ]
        + crumb
        + text[at % (len(text) + 1) + cut :]
    ),
    VALUES,
    st.booleans(),
    st.integers(0, 1000),
    PIECES | st.just(b""),
    st.integers(0, 2),
)


@settings(max_examples=400, deadline=None)
@given(BODIES, st.sampled_from([4, 5, 6, 7, 9, 16, 40]))
@example(b"[  ,  [1]]", 6)
@example(b'{"aaaaaa":1,}', 4)
@example(b"[11,]", 4)
@example(b'{"aaaaaaaa":{"b":1},"cccccccc":2}', 4)
@example(b'[{ "a":0}\n,"[b]"  ,]', 4)
@example(b'["\\\\\\\\",\'"\\ud800\\ud83d\\ude00"]', 4)
def test_all_judges_agree_on_bodies_in_small_pieces(body: bytes, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_check, "PIECE", piece)
        found = told(walked, body)
    told_whole = told(slow, body)
    assert (found is None) == (told_whole is None)
    assert isinstance(told_whole, ValueError) or found == told_whole


@pytest.mark.parametrize("body", [b"[[[null{", b"[[[1 [", b'[[[{"a":1}', b"[[[tru[", b"[[[1,]", b"[[[[1,]"])
def test_the_first_error_is_told_where_a_body_is_too_deep_and_broken(body: bytes) -> None:
    with pytest.raises(BadJson) as caught:
        check_json(body, 3)
    with pytest.raises(BadJson) as expected:
        scan(body, 3)
    assert (caught.value.position, caught.value.code) == (expected.value.position, expected.value.code)


@settings(max_examples=150, deadline=None)
@given(VALUES, st.booleans(), st.sampled_from(["", " ", "\n      "]), st.integers(4, 40))
@example([[[1], [[2, "aaaaaaaaaaaa"]]], {"a": [[3]], "b": ["bbbbbbbbbbbb", 4]}], True, "\n      ", 7)
@example({"a": [{"b": 1, "c": "x" * 30}], "d": [{"b": 2, "c": "x" * 30}]}, True, "", 5)
@example([[[[1]]], [[[2, 3]]], 4], True, "\n      ", 5)
def test_values_are_cut_from_small_pieces_as_the_bytes_that_came(
    value: object, ascii_only: bool, space: str, piece: int
) -> None:
    text = json.dumps([value], ensure_ascii=ascii_only, separators=("," + space, space + ":"))
    try:
        body = text.encode()
    except UnicodeEncodeError:
        return

    def cut(part: Part, value: object) -> None:
        assert json.loads(part.whole()) == value
        if isinstance(value, list):
            parts = at_once(part.elements(100))
            assert len(parts) == len(value)
            for one, expected in zip(parts, value, strict=True):
                cut(one, expected)
        elif isinstance(value, dict):
            members = at_once(part.members(*value))
            assert members.keys() == value.keys()
            for name, one in members.items():
                cut(one, value[name])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_check, "PIECE", piece)
        patch.setattr(json_check, "WINDOWS", (4,))
        cut(Part.of(body, at_once(json_check._walking(body, MAX_DEPTH))), json.loads(text))
