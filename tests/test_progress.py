"""A line every ten seconds in a log, with share and time left."""

import mergemoe.progress as progress


def test_a_log_gets_a_line_every_ten_seconds(monkeypatch, capsys):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert list(progress.track(range(10), "chunks")) == list(range(10))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "chunks: 3 of 10 (30%), 28 s left",
        "chunks: 6 of 10 (60%), 16 s left",
        "chunks: 9 of 10 (90%), 4 s left",
    ]


def test_without_a_total_the_count_is_said(monkeypatch, capsys):
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    list(progress.track(iter("ab"), "documents"))
    assert capsys.readouterr().err.splitlines() == ["documents: 1 done in 20 s", "documents: 2 done in 40 s"]
