"""``privacy`` on the command line."""

import json

X, A, Z0 = "700123456789012", "13800138000", "13957100001"


def reason(run, *words):
    said = run("check", "--from", X, "--to", Z0, "--trunk", "natl", "--json", *words).stdout
    return json.loads(said)["reason"]


def test_bind_show_unbind(run) -> None:
    """A call from X passes while it is bound to the callee, and is refused once that is over."""
    before = reason(run)
    said = run("privacy", "bind", X, "--a", A, "--b", Z0, "--since", "2026-06-01", "--max-call", 600).stdout
    assert said == f"{X} stands for {A} and {Z0} from 2026-06-01 00:00:00+08:00\n"
    assert reason(run) == "privacy_number"
    assert reason(run, "--at", "2026-05-31T23:59:59") == before
    rows = json.loads(run("privacy", "show", X, "--json").stdout)
    assert [(row["caller"], row["callee"], row["state"], row["max_call_s"]) for row in rows] == [
        (Z0, A, "holds", 600),
        (A, Z0, "holds", 600),
    ]
    assert "Asia/Shanghai" in run("privacy", "show").stdout
    assert run("privacy", "unbind", X, "--party", Z0).stdout == f"unbound {X}\n"
    assert reason(run) == "privacy_binding_expired"
    assert "has no binding" in run("privacy", "unbind", X, code=1).stderr
    assert run("privacy", "forget", "--before", "2999-01-01").stdout == "removed 2 bindings\n"
    assert reason(run) == before


def test_what_cannot_be_bound(run) -> None:
    """A number that is no privacy number, the same number twice, an end before the beginning: one line each."""
    assert "is no privacy number" in run("privacy", "bind", A, "--b", Z0, code=2).stderr
    assert "the same number" in run("privacy", "bind", X, "--a", Z0, "--b", Z0, code=2).stderr
    said = run("privacy", "bind", X, "--b", Z0, "--since", "2026-06-01", "--until", "2026-06-01", code=2).stderr
    assert "is not after" in said
    run("privacy", "bind", X, "--b", Z0, "--max-call", 0, code=2)
    assert json.loads(run("privacy", "show", "--json").stdout) == []


def test_import(run, tmp_path) -> None:
    """A file of pairs: all rows or none."""
    file = tmp_path / "pairs.csv"
    file.write_text(f"x,a,b,until\n{X},{A},{Z0},2999-01-01T00:00:00+08:00\n")
    assert run("privacy", "import", "pairs.csv", "--dry-run").stdout == "would import 1 pairs\n"
    assert run("privacy", "import", "pairs.csv").stdout == "imported 1 pairs\n"
    assert reason(run) == "privacy_number"
    file.write_text(f"x,b\n{X},{A}\n{A},{Z0}\n")
    said = run("privacy", "import", "pairs.csv", code=2).stderr
    assert "line 3: column x: 13800138000 is no privacy number" in said
    assert "1 shown; --limit shows more" in run("privacy", "show", "--limit", 1).stdout
