"""The license of an original: from its card, or else from its config.json."""

import json

import pytest

from mergemoe.checkpoints.license import stated_license

OWN = "---\nlicense: other\nlicense_name: tongyi\nlicense_link: LICENSE\ntags: [a]\n---\n# A model\n"


@pytest.mark.parametrize(
    ("card", "config", "expected"),
    [
        (OWN, {}, {"license": "other", "license_name": "tongyi", "license_link": "LICENSE"}),
        ("---\nlicense: [mit, apache-2.0]\n---\n", {}, {"license": ["mit", "apache-2.0"]}),
        ("---\nlicense: mit\n---\n", {"license": "apache-2.0"}, {"license": "mit"}),
        ("---\ntags: [a]\n---\n", {"license": "apache-2.0"}, {"license": "apache-2.0"}),
        ("# A model without front matter\n", {"license": "mit"}, {"license": "mit"}),
        (None, {"license": "mit"}, {"license": "mit"}),
        (None, {}, {}),
        ("---\nlicense: {a: 1}\n---\n", {"license": 3}, {}),
        ("---\nlicense: [mit, 3]\n---\n", {"license": []}, {}),
        ("---\n: [\n---\n", {"license": "mit"}, {"license": "mit"}),
        ("---\n- a\n---\n", {"license": "mit"}, {"license": "mit"}),
    ],
)
def test_the_license_is_that_of_the_card_or_else_of_the_configuration(tmp_path, card, config, expected):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_moe", **config}))
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert stated_license(tmp_path) == expected


def test_a_card_that_is_no_text_states_nothing(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert stated_license(tmp_path) == {}
