"""What a script is made of: all that it calls, and nothing that it does not."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from registry.redis.commands import VERBS
from registry.redis.scripts import load, only_needed
from tests.bench import Bench

FILES = {
    file.name: file.read_text("utf-8")
    for file in files("registry.redis").joinpath("lua").iterdir()
    if file.name.endswith(".lua")
}
NAMES = {name for text in FILES.values() for name in re.findall(r"^local function (\w+)", text, re.MULTILINE)}
LAZY = """
local calls, made = 0, 0
local function count() calls = calls + 1 end
local function unused() return count() end
made = made + 1
local function deep(n) if n == 0 then return made end return deep(n - 1) end
local function seldom(n, ...)
  count()
  return {deep(n), calls, ...}
end
local function common(n, ...)
  return seldom(n, ...)
end
if KEYS[1] then return {common(3, 7, 8), common(0)} end
return made
"""


@pytest.mark.parametrize("verb", VERBS)
def test_a_script_defines_what_it_names_and_names_what_it_defines(verb: str) -> None:
    text = load(verb).text.decode()
    defined = re.findall(r"^local function (\w+)|^(\w+) = function\(\.\.\.\)", text, re.MULTILINE)
    names = [one or other for one, other in defined]
    assert len(set(names)) == len(names)
    called = re.findall(r"(?:\.\.|(?<![.\w:]))(\w+)\(", text)
    called += re.findall(r"(?:pcall|reply_of|reply_each)\((\w+)", text)
    assert set(called) & NAMES <= set(names)
    words = re.findall(r"\w+", text)
    assert [name for name in names if words.count(name) < 2] == []


def test_files_name_as_rare_what_they_have() -> None:
    for text in FILES.values():
        for line in re.findall(r"^-- rarely: (.*)$", text, re.MULTILINE):
            assert set(line.split(", ")) <= NAMES


@pytest.mark.every_redis
def test_a_function_that_only_a_rare_one_needs_is_made_by_its_first_call(bench: Bench) -> None:
    text = only_needed(LAZY, ["seldom"])
    assert "unused" not in text
    assert text.index("seldom = function(...)") < text.index("local function deep") < text.index("common(")
    for script in (LAZY, text):
        assert bench.redis("EVAL", script, 0) == 1
        assert bench.redis("EVAL", script, 1, "q") == [[1, 1, 7, 8], [1, 2]]
