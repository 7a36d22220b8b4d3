"""A scenario file that is wrong is one clear line."""

from pathlib import Path

import pytest

from pbxguard.errors import BadInput
from pbxguard.lab import scenario


@pytest.mark.parametrize("text", ["a = " + "[" * 20_000, "a = " + "{a = " * 20_000])
def test_nested_without_end(tmp_path: Path, text: str) -> None:
    """Thousands of nested brackets are refused by file, not raised from the parser's stack."""
    path = tmp_path / "deep.toml"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"deep\.toml: not valid TOML: nested too deep"):
        scenario.read(path)
