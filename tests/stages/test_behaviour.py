"""What counts as a change of code: wording does not, everything else does."""

import pytest
from tiny_project import ROOT

from stages.support import tracking
from stages.support.behaviour import behaviour

CODE = '''
"""Title."""

def check(path, kinds, found):
    """Check a file."""
    assert found, f"{path} is empty"
    for item in track(found, f"{path}: items checked"):
        if kinds["weights"] == item and path.suffix in (".json", "text"):
            raise ArtifactError(f"{path} is damaged: {kinds['weights']}. Delete it." + "\\n".join(["a", f"{item}"]))
    print(f"{path} was read in {found.seconds:.1f} s", file=sys.stderr)
    warnings.warn("this is slow", stacklevel=2)
    match path:
        case "cpu":
            return errors.damaged(path, "x"), UserError("no such path"), {"name": f"layer_{item}"}
    raise kinds["error"](path, 0.01, "words")
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Title.", "Another title."),
        ("Check a file.", "Look at a file."),
        ("is empty", "holds nothing"),
        ("items checked", "items"),
        ("is damaged", "is broken"),
        ("{path} is damaged", "The file {path} is damaged"),
        ("kinds['weights']}. Delete it.", "item}. Remove it."),
        ('["a", ', '["b", '),
        ("was read in", "took"),
        ("this is slow", "this takes long"),
        ("no such path", "there is no such path"),
        ('0.01, "words"', '0.01, "other words"'),
        ("    print(", "    # a remark\n    print("),
    ],
)
def test_wording_is_no_change(old, new):
    assert CODE.count(old) >= 1
    assert behaviour(CODE.replace(old, new, 1)) == behaviour(CODE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('if kinds["weights"]', 'if kinds["router"]'),
        ('"text")', '"yaml")'),
        (".json", ".yaml"),
        ('case "cpu"', 'case "cuda"'),
        ('{"name"', '{"title"'),
        ("layer_{item}", "{item}"),
        ('kinds["error"]', 'kinds["warning"]'),
        ("0.01", "0.02"),
        ("track(found", "track(found[1:]"),
        ("found.seconds:.1f", "found.pop():.1f"),
        ("ArtifactError", "UserError"),
        ('damaged(path, "x")', 'damaged(path, "y")'),
        ("assert found", "assert not found"),
        ("stacklevel=2", "stacklevel=3"),
    ],
)
def test_everything_else_is_a_change(old, new):
    assert CODE.count(old) >= 1
    assert behaviour(CODE.replace(old, new, 1)) != behaviour(CODE)


@pytest.mark.parametrize(
    "text",
    [
        'raise Refused(main("argument"))',  # what is called for its result
        'raise by_name["a"]',
        'raise Refused("a" == b)',
        'raise Refused({"a": 1}, lambda: "a")',
        'track(["a", "b"], label)',
        'print(choose("a"))',
        'say("a")',
    ],
)
def test_a_text_that_chooses_something_stays(text):
    assert behaviour(text.replace('"a', '"other')) != behaviour(text)


def test_modules_that_no_number_depends_on_are_not_counted():
    for stage in ("capture", "solve", "evaluate", "report"):
        names = {path.relative_to(ROOT).as_posix() for path in tracking.sources(f"stages.{stage}")}
        assert not names & tracking.UNCOUNTED
    for name in tracking.UNCOUNTED:  # so nothing is counted only because they import it
        path = ROOT / name
        assert path.is_file()
        assert not [one for one in tracking.imports(path) if one.startswith(("mergemoe.", "stages."))]
