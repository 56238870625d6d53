"""`mergemoe fetch` against a small server that speaks the hub's protocol; nothing here reaches the network."""

import contextlib
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save
from tiny_project import ROOT

from mergemoe.artifacts import digests, store
from mergemoe.checkpoints import model_folder
from mergemoe.checkpoints.hub import download, fetch, hub_cache, hub_record, listing
from mergemoe.compressed import checkpoint_card
from mergemoe.errors import UserError
from mergemoe.workflow.config.params import Text, read_params
from mergemoe.workflow.planning import preflight
from stages import layout as stage
from stages.support.graph import Graph

MODEL, COMMIT = "some-org/tiny-moe", "0123456789abcdef0123456789abcdef01234567"
MB = 1 << 20
CODE = "import sys; from mergemoe.cli import main; sys.argv[0] = 'mergemoe'; main()"


class Hub:
    """Repositories on a port of this machine: {model: {file: bytes}}, each with the one commit `COMMIT`."""

    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.requests: list[tuple[str, str, str | None]] = []  # method, file, range
        self.sent = Counter()  # {file: bytes}
        self.cut: dict[str, int] = {}  # after so many bytes the connection ends, once
        self.stall: dict[str, int] = {}  # after so many bytes nothing comes any more, once
        self.instead: dict[str, bytes] = {}  # what is sent in place of a file
        self.listing = lambda entries: entries  # what is listed in place of the files
        self.headers: dict[str, str] = {}  # what is said in place of the right headers
        self.endless: set[str] = set()  # files whose body does not end
        self.instead_of: dict[str, Callable[[Handler], None]] = {}  # how a kind of question is answered
        self.tokens: dict[str, str | None] = {}  # {host: the last authorization}
        self.closed = threading.Event()
        handler = type("Handler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def port(self):
        return self.server.server_address[1]

    def asked(self, name, method="GET"):
        """Return the ranges that a file was asked for in."""
        return [asked for did, file, asked in self.requests if (did, file) == (method, name)]


class Handler(BaseHTTPRequestHandler):
    """What huggingface_hub asks: api/models/.../revision/, /tree/, resolve; large files lie on another host."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlparse(self.path).path)
        self.hub.tokens[self.headers["Host"].partition(":")[0]] = self.headers["Authorization"]
        if path.startswith("/cdn/"):
            return self.file(*path.removeprefix("/cdn/").split("//"))
        match = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+)/(revision|tree|resolve)/([^/]+)(?:/(.*))?", path)
        if not match or match[1] not in self.hub.repositories:
            return self.fail("RepoNotFound")
        model, what, revision, name = match.groups()
        if revision not in {"main", COMMIT}:
            return self.fail("RevisionNotFound")
        files = self.hub.repositories[model]
        if what in self.hub.instead_of:
            return self.hub.instead_of[what](self)
        if what == "revision":
            return self.json({"id": model, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]})
        if what == "tree":
            return self.json(self.hub.listing(tree(files, name)))
        if name not in files:
            return self.fail("EntryNotFound")
        facts = {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes", **self.hub.headers}
        digest = entry(name, files[name]).get("lfs", {}).get("oid")
        if digest is None:
            return self.file(model, name, {"ETag": f'"{git_hash(files[name])}"', **facts})
        linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(files[name]))}
        elsewhere = f"http://localhost:{self.hub.port}/cdn/{model}//{name}"
        return self.answer(302, b"", {**linked, **facts, "Location": elsewhere})

    def file(self, model, name, facts=None):
        """Send a file from where it is asked for, or as far as the test lets it."""
        content = self.hub.instead.get(name, self.hub.repositories[model][name])
        asked = self.headers["Range"]
        self.hub.requests.append((self.command, name, asked))
        if name in self.hub.endless and self.command == "GET":
            return self.pour(name)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
        head = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        getting = self.command == "GET"
        stall = self.hub.stall.pop(name, None) if getting else None
        stop = stall or (self.hub.cut.pop(name, None) if getting else None)
        self.answer(206 if start else 200, content[start:], {**(facts or {}), **head}, stop)
        if getting:
            self.hub.sent[name] += len(content[start:stop])
            self.close_connection = stop is not None
        if stall:
            self.hub.closed.wait(60)

    def pour(self, name):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):
            while not self.hub.closed.is_set():
                self.wfile.write(b"100000\r\n" + b"~" * MB + b"\r\n")
                self.hub.sent[name] += MB

    def answer(self, status, content, headers, stop=None):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:stop])

    def json(self, content):
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def fail(self, code):
        self.answer(404, b"", {"X-Error-Code": code, "X-Error-Message": code})


def git_hash(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(name, content):
    """What the hub lists of a file; what git cannot hold well lies in LFS."""
    listed = {"type": "file", "oid": git_hash(content), "size": len(content), "path": name}
    if name.endswith((".safetensors", ".bin", ".gguf", "tokenizer.json")):
        listed["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return listed


def tree(files, folder):
    """What the hub lists of a folder, or of the top one: its files, and the folders in it."""
    inside = {file: content for file, content in files.items() if not folder or file.startswith(f"{folder}/")}
    below = {
        file.removeprefix(f"{folder}/").partition("/")[0] for file in inside if "/" in file.removeprefix(f"{folder}/")
    }
    folders = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": name} for name in sorted(below)]
    return folders + [
        entry(file, content) for file, content in inside.items() if file.rpartition("/")[0] == (folder or "")
    ]


def repository(large=0):
    """Two shards with 2 experts in layers 0 and 1, beside files of which a run needs some; the first is `large`."""
    shards = {"model-00001-of-00002.safetensors": {}, "model-00002-of-00002.safetensors": {}}
    for layer, tensors in enumerate(shards.values()):
        for expert in range(2):
            for role, shape in {"gate_proj": (3, 4), "up_proj": (3, 4), "down_proj": (4, 3)}.items():
                tensors[f"model.layers.{layer}.mlp.experts.{expert}.{role}.weight"] = np.ones(shape, np.float32)
    shards["model-00001-of-00002.safetensors"]["model.embed_tokens.weight"] = np.arange(
        large // 4 + 4, dtype=np.float32
    )
    config = {"model_type": "qwen3_moe", "num_experts": 2, "num_experts_per_tok": 1, "num_hidden_layers": 2}
    index = {"weight_map": {key: name for name, tensors in shards.items() for key in tensors}}
    needed = {
        "config.json": json.dumps({**config, "hidden_size": 4}).encode(),
        "generation_config.json": b"{}",
        "tokenizer.json": b'{"large": true}',
        "tokenizer_config.json": b'{"padding_side": "left"}',
        "chat_template.jinja": b"{{ messages }}",
        "merges.txt": b"a b",
        "README.md": b"# A model",
        "LICENSE": b"As you like",
        "NOTICE": b"Made by some-org",
        "additional_chat_templates/rag.jinja": b"{{ documents }}",
        "LICENSES/Apache-2.0.txt": b"Apache License",
        "model.safetensors.index.json": json.dumps(index).encode(),
        **{name: save(tensors) for name, tensors in shards.items()},
    }
    useless = {
        "modeling_tiny.py": b"print('never')",
        "pytorch_model.bin": b"pickle",
        "pytorch_model.bin.index.json": b"{}",
        "tiny.gguf": b"gguf",
        "consolidated.safetensors": b"the same weights again",
        "original/model.safetensors": b"and again",
        "additional_chat_templates/notes.md": b"no template",
    }
    return needed, useless


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A hub with the small repository; the working folder and the cache are the test's own."""
    needed, useless = repository()
    served = Hub()
    served.repositories[MODEL] = {**needed, **useless}
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    yield served
    served.closed.set()
    served.server.shutdown()
    served.server.server_close()


def environment(served, **more):
    """The command's environment: online, but only to the test's server."""
    own = {"HF_ENDPOINT": f"http://127.0.0.1:{served.port}", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1,localhost"}
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
        "HF_TOKEN": "hf_x",
        **own,
        **more,
    }


def run_fetch(served, *args, **more):
    command = [sys.executable, "-c", CODE, "fetch", *args]
    return subprocess.run(command, env=environment(served, **more), capture_output=True, text=True)


def refused(served, *args, **more):
    """Run a fetch that must fail in one line; return the line."""
    done = run_fetch(served, *args, **more)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    assert not list(hub_cache.fetch_record_path(MODEL, COMMIT).parent.glob("*"))
    return done.stderr


def test_fetch_brings_what_a_run_needs_and_records_each_file(served):
    needed, useless = repository()
    done = run_fetch(served, MODEL, "--revision", COMMIT)
    assert done.returncode == 0, done.stderr
    folder = model_folder.locate_checkpoint(MODEL, COMMIT)
    assert f"in {folder}" in done.stdout and "data/hub/some-org--tiny-moe" in done.stdout
    assert re.search(rf"{MODEL} needs 0.0 GB more in .*, where [\d.]+ GB are free", done.stderr)
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert {name: path.read_bytes() for name, path in found.items()} == needed
    assert not {name for _, name, _ in served.requests} & useless.keys()
    written = hub_cache.fetch_record_path(MODEL, COMMIT)
    expected = {n: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in needed.items()}
    content = json.loads(written.read_text())
    assert content.pop("digest") == digests.digest_json(content)
    assert content == {"model": MODEL, "revision": COMMIT, "files": expected}
    assert list(json.loads(written.read_text())["files"]) == sorted(needed)
    assert served.sent == {name: len(content) for name, content in needed.items()}  # each once


def test_the_token_goes_to_the_hub_and_not_where_it_sends_us(served):
    assert run_fetch(served, MODEL, "--revision", COMMIT).returncode == 0
    assert served.tokens == {"127.0.0.1": "Bearer hf_x", "localhost": None}


def test_a_second_fetch_needs_no_network_and_leaves_the_record_alone(served):
    assert run_fetch(served, MODEL, "--revision", COMMIT).returncode == 0
    written = hub_cache.fetch_record_path(MODEL, COMMIT)
    before, asked = (written.read_bytes(), written.stat().st_mtime_ns), len(served.requests)
    again = run_fetch(served, MODEL, "--revision", COMMIT, HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert (written.read_bytes(), written.stat().st_mtime_ns) == before
    assert len(served.requests) == asked
    written.unlink()
    assert run_fetch(served, MODEL, "--revision", COMMIT).returncode == 0
    assert written.read_bytes() == before[0]
    assert served.sent["model-00001-of-00002.safetensors"] == len(repository()[0]["model-00001-of-00002.safetensors"])


def test_without_network_what_is_missing_is_said(served):
    assert run_fetch(served, MODEL, "--revision", COMMIT).returncode == 0
    model_folder.locate_checkpoint(MODEL, COMMIT).joinpath("model-00002-of-00002.safetensors").unlink()
    offline = run_fetch(served, MODEL, "--revision", COMMIT, HF_HUB_OFFLINE="1")
    assert offline.returncode == 1
    assert "could not be downloaded" in offline.stderr and "Traceback" not in offline.stderr


def test_after_a_cut_connection_the_rest_of_the_file_is_asked_for(served):
    name = "model-00001-of-00002.safetensors"
    needed, _ = repository(large=24 * MB)
    served.repositories[MODEL] = needed
    served.cut[name] = 15 * MB
    done = run_fetch(served, MODEL, "--revision", COMMIT)
    assert done.returncode == 0, done.stderr
    assert served.asked(name) == [None, f"bytes={10_000_000 // (10 * MB) or 10 * MB}-"]
    assert served.sent[name] == len(needed[name]) + 5 * MB
    assert model_folder.locate_checkpoint(MODEL, COMMIT).joinpath(name).read_bytes() == needed[name]


def sizes(paths):
    """The sizes of files, any of which may be gone when it is looked at."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            yield path.stat().st_size


def test_a_killed_fetch_goes_on_in_the_middle_of_a_file(served):
    name = "model-00001-of-00002.safetensors"
    needed, _ = repository(large=24 * MB)
    served.repositories[MODEL] = needed
    served.stall[name] = 15 * MB
    command = [sys.executable, "-c", CODE, "fetch", MODEL, "--revision", COMMIT]
    process = subprocess.Popen(command, env=environment(served), stderr=subprocess.PIPE)
    blobs = hub_cache.snapshot_folder(MODEL, COMMIT).parents[1] / "blobs"
    end = time.monotonic() + 60
    while not any(size >= 10 * MB for size in sizes(blobs.glob(f"*{download.PART}"))):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(UserError, match=rf"Run `mergemoe fetch {MODEL} --revision {COMMIT}`"):
        model_folder.locate_checkpoint(MODEL, COMMIT)  # half a model is none
    done = run_fetch(served, MODEL, "--revision", COMMIT)
    assert done.returncode == 0, done.stderr
    assert served.asked(name) == [None, f"bytes={10 * MB}-"]
    assert model_folder.locate_checkpoint(MODEL, COMMIT).joinpath(name).read_bytes() == needed[name]
    assert not list(blobs.glob("*.incomplete"))


SHARD = "model-00001-of-00002.safetensors"


def changed(name, **facts):
    """A listing with other facts for one file."""

    def listing(entries):
        for one in entries:
            if one["path"] == name:
                one.update(facts | ({"lfs": one["lfs"] | facts["lfs"]} if "lfs" in facts else {}))
        return entries

    return listing


def another(path):
    return lambda entries: [*entries, {"type": "file", "oid": "0" * 40, "size": 1, "path": path}]


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        (changed(SHARD, lfs={"oid": "../../../../X"}), "states the digest '../../../../X'"),
        (changed(SHARD, lfs={"oid": "/tmp/X"}), "states the digest '/tmp/X'"),
        (changed(SHARD, lfs={"size": 1}), "states the size"),
        (changed(SHARD, lfs={"oid": "A" * 64}), "states the digest 'AAAA"),
        (changed(SHARD, lfs={"oid": None}), "states the digest None"),
        (changed(SHARD, size=-1), "states the size -1"),
        (changed(SHARD, size="9"), "states the size '9'"),
        (changed(SHARD, size=True), "states the size True"),
        (changed(SHARD, size=10**400, lfs={"size": 10**400}), "states the size 1000"),
        (changed("config.json", oid="../../x"), "states the digest '../../x'"),
        (changed("config.json", oid="0" * 64), "states the digest '0000"),
        (another("../x.json"), "lists a file with the name '../x.json'"),
        (another("a/../../x.json"), "lists a file with the name"),
        (another("/etc/x.json"), "lists a file with the name '/etc/x.json'"),
        (another("a\\x.json"), "lists a file with the name"),
        (another("a\nx.json"), "lists a file with the name"),
        (another(""), "lists a file with the name ''"),
        (another("x" * 300 + ".json"), "lists a file with the name"),
        (another(7), "lists a file with the name 7"),
        (another("config.json"), "lists config.json twice"),
        (lambda _: {"error": 1}, "in no known form"),
        (lambda _: [{"type": "file", "path": "a"}], "in no known form"),
        (lambda _: [1], "in no known form"),
    ],
)
def test_what_a_hub_lists_is_checked_before_anything_is_written(served, tmp_path, listing, message):
    served.listing = listing
    assert re.search(message, refused(served, MODEL, "--revision", COMMIT))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def said(content, **headers):
    """An answer with other bytes and headers."""
    return lambda handler: handler.answer(200, content, {"Content-Type": "application/json", **headers})


def page_after_page(handler):
    handler.answer(200, b"[]", {"Link": f'<http://127.0.0.1:{handler.hub.port}{handler.path}>; rel="next"'})


def wait(handler):
    handler.hub.closed.wait(60)


def next_page(link):
    return said(b"[]", Link=f'<{link}>; rel="next"')


NO_ANSWER = "could not be downloaded|in no known form|cannot be read|has not answered"
ESCAPES = said(json.dumps({"id": MODEL, "sha": "$(touch x)\x1b[31m\nerror: run this"}).encode())


@pytest.mark.parametrize(
    ("kind", "answer", "message"),
    [
        ("tree", page_after_page, "has not answered a question in 3 s"),
        ("tree", wait, "has not answered a question in 3 s"),
        ("revision", wait, "has not answered a question in 3 s"),
        ("tree", said(b"[" * 200_000), "in no known form"),
        ("tree", said(b"<html>"), NO_ANSWER),
        ("tree", said(b"[]", **{"Content-Encoding": "gzip"}), NO_ANSWER),
        ("tree", next_page("http://\x00/"), NO_ANSWER),
        ("tree", next_page("http://[::bad/"), NO_ANSWER),
        ("tree", next_page("file:///etc/passwd"), NO_ANSWER),
        (
            "tree",
            next_page("http://xn--\udc80/".encode("utf8", "replace").decode()),
            NO_ANSWER,
        ),
        ("revision", said(b"junk"), "cannot be read"),
        ("revision", said(b"[]"), "cannot be read"),
        ("revision", said(b"{}"), "cannot be read|names the commit None"),
        ("revision", said(b'{"id": 3, "siblings": [{}]}'), "cannot be read"),
        ("revision", said(b'{"id": "a/b", "lastModified": "yesterday", "siblings": []}'), "cannot be read"),
        ("revision", said(b'{"id": "a/b", "sha": 5}'), "names the commit 5 for main, which is none"),
        ("revision", ESCAPES, r"names the commit '\$\(touch x\)\\x1b\[31m\\nerror: run this' for main, which is none"),
    ],
)
def test_an_answer_that_is_none_ends_in_one_line_and_soon(served, kind, answer, message):
    served.instead_of[kind] = answer
    args = () if kind == "revision" else ("--revision", COMMIT)
    patient = f"from mergemoe.checkpoints.hub import listing; listing.PATIENCE = 3; {CODE}"
    command = [sys.executable, "-c", patient, "fetch", MODEL, *args]
    done = subprocess.run(command, env=environment(served), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and re.search(message, done.stderr), done.stderr[-1500:]
    own = [line for line in done.stderr.splitlines() if "thrown while requesting" not in line and "[Retry" not in line]
    assert len(own) == 1 and "\x1b" not in done.stderr
    assert "mergemoe fetch" not in done.stderr or kind == "tree"


@pytest.mark.parametrize("what", ["pipe", "link", "folder"])
@pytest.mark.parametrize("where", ["part", "blob"])
def test_what_is_no_file_in_the_cache_is_named_and_not_touched(served, tmp_path, what, where):
    digest = hashlib.sha256(served.repositories[MODEL][SHARD]).hexdigest()
    path = hub_cache.blobs_folder(MODEL) / f"{digest}{download.PART if where == 'part' else ''}"
    path.parent.mkdir(parents=True)
    (tmp_path / "mine").write_text("mine")
    {"pipe": os.mkfifo, "folder": os.mkdir, "link": lambda one: one.symlink_to(tmp_path / "mine")}[what](path)
    assert f"{path} is a {what}, and a file belongs there" in refused(served, MODEL, "--revision", COMMIT)
    assert (tmp_path / "mine").read_text() == "mine"
    path.rmdir() if what == "folder" else path.unlink()
    assert run_fetch(served, MODEL, "--revision", COMMIT).returncode == 0


def test_a_damaged_index_in_the_cache_is_named_with_what_to_delete(served):
    index = hub_cache.blobs_folder(MODEL) / git_hash(served.repositories[MODEL][model_folder.INDEX])
    index.parent.mkdir(parents=True)
    index.write_text("{")
    assert f"{index} is damaged" in (told := refused(served, MODEL, "--revision", COMMIT)) and "Delete it" in told
    index.unlink()
    assert run_fetch(served, MODEL, "--revision", COMMIT).returncode == 0


def test_a_record_whose_digest_was_blanked_is_refused(served):
    assert run_fetch(served, MODEL, "--revision", COMMIT).returncode == 0
    path = hub_cache.fetch_record_path(MODEL, COMMIT)
    path.write_text(json.dumps({**json.loads(path.read_text()), "digest": None}))
    with pytest.raises(UserError, match="does not hold what was written"):
        hub_record.read_fetch_record(MODEL, COMMIT)


@pytest.mark.parametrize(
    "change",
    [
        lambda files: files["merges.txt"].update(size=4),
        lambda files: files.update({"more.json": files["merges.txt"]}),
        lambda files: files.pop("merges.txt"),
        lambda files: [files.pop(name) for name in list(files)[1:]],
    ],
)
def test_a_record_of_other_files_or_sizes_is_refused_and_kept(served, change):
    assert run_fetch(served, MODEL, "--revision", COMMIT).returncode == 0
    files = hub_record.read_fetch_record(MODEL, COMMIT)
    change(files)
    path = hub_record.write_fetch_record(MODEL, COMMIT, files)
    before = path.read_bytes()
    shutil.rmtree(hub_cache.snapshot_folder(MODEL, COMMIT))  # so that the hub is asked
    done = run_fetch(served, MODEL, "--revision", COMMIT)
    assert done.returncode == 1 and "names other files than the hub, or states other sizes" in done.stderr
    assert path.read_bytes() == before
    path.unlink()
    assert run_fetch(served, MODEL, "--revision", COMMIT).returncode == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Repo-Commit": "f" * 40},
        {"X-Repo-Commit": "../../../x"},
        {"ETag": '"../../../../x"', "X-Linked-Etag": '"../../../../x"'},
        {"ETag": '"/tmp/x"'},
    ],
)
def test_what_a_hub_says_in_headers_is_checked_before_anything_is_written(served, tmp_path, headers):
    served.headers = headers
    told = refused(served, MODEL, "--revision", COMMIT)
    assert re.search("answers with the commit|states the digest", told)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", [SHARD, "config.json", model_folder.INDEX, "tokenizer.json"])
def test_a_body_that_does_not_end_is_stopped_at_the_stated_size(served, tmp_path, name):
    served.endless = {name}
    told = refused(served, MODEL, "--revision", COMMIT)
    assert f"{name} of {MODEL}: what came has more than the" in told
    assert served.sent[name] < 64 * MB  # what lay in buffers
    assert all(path.stat().st_size < MB for path in tmp_path.rglob("*") if path.is_file())
    listed = entry(name, served.repositories[MODEL][name])
    assert not list(tmp_path.rglob(f"{listed.get('lfs', listed)['oid']}*"))
    served.endless = set()
    assert run_fetch(served, MODEL, "--revision", COMMIT).returncode == 0


@pytest.mark.parametrize("more", [1, 5 * MB])
def test_a_part_that_is_longer_than_the_file_starts_again(served, more):
    right = served.repositories[MODEL][SHARD]
    part = hub_cache.blobs_folder(MODEL) / f"{hashlib.sha256(right).hexdigest()}{download.PART}"
    part.parent.mkdir(parents=True)
    part.write_bytes(right + b"~" * more)
    done = run_fetch(served, MODEL, "--revision", COMMIT)
    assert done.returncode == 0, done.stderr
    assert model_folder.locate_checkpoint(MODEL, COMMIT).joinpath(SHARD).read_bytes() == right


def test_an_index_that_names_a_pickle_brings_none(served):
    index = {"weight_map": {"a": "pytorch_model.bin"}}
    served.repositories[MODEL][model_folder.INDEX] = json.dumps(index).encode()
    assert "pytorch_model.bin" in (said := refused(served, MODEL, "--revision", COMMIT)) and "never opened" in said
    assert not served.asked("pytorch_model.bin")


@pytest.mark.parametrize("model", ["../..", "a/..", "a--b/c", ".a/b", "a/b/c", "a/" + "b" * 100, "-a/b"])
def test_an_id_that_is_a_path_is_none(served, model):
    with pytest.raises(UserError, match="is not the id of a hub model"):
        fetch.fetch_model(model, COMMIT)


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "tokenizer.json", "merges.txt"])
def test_a_file_that_is_not_what_the_hub_states_is_refused_and_not_recorded(served, name):
    right = served.repositories[MODEL][name]
    served.instead[name] = b"~" * len(right)
    assert name in (told := refused(served, MODEL, "--revision", COMMIT)) and "sha256" in told
    served.instead.clear()
    if found := re.search(r"Delete (\S+)", told):
        os.unlink(found[1])
    assert run_fetch(served, MODEL, "--revision", COMMIT).returncode == 0
    assert model_folder.locate_checkpoint(MODEL, COMMIT).joinpath(name).read_bytes() == right


def test_a_file_that_changed_in_the_cache_is_named_with_the_record_it_breaks(served):
    assert run_fetch(served, MODEL, "--revision", COMMIT).returncode == 0
    shard = model_folder.locate_checkpoint(MODEL, COMMIT) / "model-00001-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.resolve().chmod(0o644)
    shard.write_bytes(content)
    told = run_fetch(served, MODEL, "--revision", COMMIT, HF_HUB_OFFLINE="1")
    assert told.returncode == 1
    assert f", but {hub_cache.fetch_record_path(MODEL, COMMIT)} states another. Nothing was recorded" in told.stderr
    assert f"Delete {shard.resolve()}" in told.stderr


def test_the_record_of_a_colleague_binds_what_is_fetched(served):
    assert run_fetch(served, MODEL, "--revision", COMMIT).returncode == 0
    files = hub_record.read_fetch_record(MODEL, COMMIT)
    files["merges.txt"]["sha256"] = "0" * 64
    hub_record.write_fetch_record(MODEL, COMMIT, files)
    told = run_fetch(served, MODEL, "--revision", COMMIT)
    assert told.returncode == 1 and f"merges.txt: its sha256 is {hashlib.sha256(b'a b').hexdigest()}" in told.stderr


@given(place=st.integers(0), flipped=st.integers(1, 255))
def test_a_record_with_a_changed_byte_is_refused_or_says_the_same(place, flipped):
    files = {"a.json": {"size": 3, "sha256": "1" * 64}, "b.safetensors": {"size": 5, "sha256": "2" * 64}}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        written = hub_record.write_fetch_record(MODEL, COMMIT, files)
        content = bytearray(written.read_bytes())
        content[place % len(content)] ^= flipped
        written.write_bytes(content)
        try:
            assert hub_record.read_fetch_record(MODEL, COMMIT) == files
        except UserError as error:
            assert re.search("is damaged .* Restore it with git, or delete it and run `mergemoe fetch", str(error))


HASH = "1" * 64


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "null",
        "[" * 100_000,
        '{"files": {}}',
        {"files": {}},
        {"files": []},
        {"more": 1},
        {"model": "some-org/other"},
        {"revision": "f" * 40},
        {"files": {"../a.json": {"size": 1, "sha256": HASH}}},
        {"files": {"/etc/passwd": {"size": 1, "sha256": HASH}}},
        {"files": {"a.json": {"size": -1, "sha256": HASH}}},
        {"files": {"a.json": {"size": True, "sha256": HASH}}},
        {"files": {"a.json": {"size": 1, "sha256": "../" * 21 + "a"}}},
        {"files": {"a.json": {"size": 1, "sha256": 5}}},
        {"files": {"a.json": {"size": 1}}},
        {"files": {"a.json": None}},
    ],
)
def test_a_record_of_another_shape_is_refused(served, content):
    whole = {"model": MODEL, "revision": COMMIT, "files": {"a.json": {"size": 1, "sha256": HASH}}}
    written = hub_cache.fetch_record_path(MODEL, COMMIT)
    written.parent.mkdir(parents=True)
    written.write_text(json.dumps(whole))
    assert hub_record.read_fetch_record(MODEL, COMMIT) == whole["files"]  # as older versions wrote it
    written.write_text(content if isinstance(content, str) else json.dumps(whole | content))
    with pytest.raises(UserError, match="Restore it with git, or delete it and run `mergemoe fetch"):
        hub_record.read_fetch_record(MODEL, COMMIT)


def test_an_unknown_model_or_commit_is_said(served):
    assert "has no model some-org/other. Check the spelling" in refused(served, "some-org/other", "--revision", COMMIT)
    assert f"has no revision {'f' * 40}" in refused(served, MODEL, "--revision", "f" * 40)
    assert "is not the id of a hub model" in refused(served, "tiny-moe", "--revision", COMMIT)


@pytest.mark.parametrize("args", [[], ["--revision", "main"], ["--revision", COMMIT[:7]]])
def test_a_revision_that_can_move_is_refused_with_the_commit_that_it_is_now(served, args):
    told = refused(served, MODEL, *args)
    assert f"For the commit that `main` is now: `mergemoe fetch {MODEL} --revision {COMMIT}`" in told
    assert not served.requests


def test_a_hub_that_does_not_answer_is_said(served):
    nowhere = {"HF_HUB_OFFLINE": "1"}  # a dead port says the same after 10 seconds of trying
    assert "could not be downloaded from http://127.0.0.1" in refused(served, MODEL, "--revision", COMMIT, **nowhere)
    assert "The current commit is not known" in refused(served, MODEL, **nowhere)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": b"{}", "pytorch_model.bin": b"x"}, "has only pickled weights (pytorch_model.bin)"),
        ({"config.json": b"{}", "tiny.gguf": b"x"}, "neither model.safetensors nor"),
        (
            {"config.json": b"{}", model_folder.INDEX: b'{"weight_map": {"a": "b.safetensors"}}'},
            "b.safetensors is missing",
        ),
        ({"config.json": b"{}", model_folder.INDEX: b"<html>"}, "is not JSON"),
        ({"model.safetensors": b"x"}, "has no config.json"),
    ],
)
def test_a_repository_without_readable_weights_is_refused_before_any_come(served, files, message):
    served.repositories[MODEL] = files
    assert message in refused(served, MODEL, "--revision", COMMIT)
    assert {name for did, name, _ in served.requests if did == "GET"} <= {model_folder.INDEX}


def test_a_disk_too_small_is_said_before_the_download(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 3 * 10**9})())
    (tmp_path / f"x{download.PART}").write_bytes(b"half")
    size = 3 * 10**9 + 4
    fetch._check_space(MODEL, tmp_path, [listing.HubFile("model.safetensors", size, HASH, True)])
    with pytest.raises(UserError, match=r"needs 3.0 GB more in .* where 3.0 GB are free\. Make room"):
        fetch._check_space(MODEL, tmp_path, [listing.HubFile("model.safetensors", size + 1, HASH, True)])


def params(**model):
    """The project's parameters on one hub model, on texts of the test's own."""
    config = yaml.safe_load((ROOT / "params.yaml").read_text())
    config["calibrate"]["mixed"]["source"] = str(ROOT / config["calibrate"]["mixed"]["source"])
    config["evaluate"] = {
        "heldout": {**config["evaluate"]["heldout"], "source": config["calibrate"]["mixed"]["source"]}
    }
    return {**config, "model": {"hubbed": {"path": MODEL, **model}}, "runs": "all"}


def test_params_yaml_names_what_to_fetch_and_the_workflow_finds_it_there(served, tmp_path):
    config = params(revision=COMMIT)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(config))
    command = f"`mergemoe fetch {MODEL} --revision {COMMIT}`"
    with pytest.raises(UserError, match=rf"^model.hubbed: .*\. Run {command}"):
        preflight.check_params(read_params(config))
    done = run_fetch(served, "--params", "params.yaml")
    assert done.returncode == 0, done.stderr
    read = read_params(config)
    preflight.check_params(read)
    graph = Graph(read)
    assert graph.layers == {"hubbed": [0, 1]}
    wildcards = type("Wildcards", (dict,), {"__getattr__": dict.__getitem__})(model="hubbed", subject="full")
    assert graph.checkpoint_files(wildcards) == [str(hub_cache.fetch_record_path(MODEL, COMMIT))]
    assert graph.folder(wildcards) == MODEL  # not where this machine keeps it
    assert json.loads(graph.plain_choice(wildcards))["revision"] == COMMIT
    hub_cache.fetch_record_path(MODEL, COMMIT).unlink()
    with pytest.raises(UserError, match=f"the record of the fetched files, is missing. Run {command}"):
        preflight.check_params(read)


def test_the_layout_names_a_model_by_id_and_commit_and_its_files_must_be_those_recorded(served, tiny, monkeypatch):
    shutil.copytree(tiny, folder := hub_cache.snapshot_folder(MODEL, COMMIT))
    files = {path.name: {"size": path.stat().st_size, "sha256": digests.sha256(path)} for path in folder.iterdir()}
    written = hub_cache.fetch_record_path(MODEL, COMMIT)
    cfg = json.dumps({"path": MODEL, "revision": COMMIT, "dequantize": False})
    monkeypatch.setattr("sys.argv", ["layout", "--cfg", cfg, "--code", "0", "--out", "layout.json"])
    hub_record.write_fetch_record(MODEL, COMMIT, files)
    stage.main()
    described = store.read_json("layout.json")
    assert (described["path"], described["revision"]) == (MODEL, COMMIT)
    assert "/hf/" not in json.dumps(described)  # the cache of this machine
    assert described["files"] == {name: file["sha256"] for name, file in files.items()}
    other = {**files, "config.json": {"size": 0, "sha256": "0" * 64}}
    fewer = {name: file for name, file in files.items() if name != "config.json"}
    for recorded, said in [(other, "0" * 64), (fewer, "not named")]:
        hub_record.write_fetch_record(MODEL, COMMIT, recorded)
        with pytest.raises(UserError, match=rf"config.json: its sha256 is .*, but {written} states {said}\."):
            stage.main()
    written.write_text("{}")
    with pytest.raises(UserError, match=rf"{written} is damaged .*\. Restore it with git"):
        stage.main()


def test_every_stage_that_reads_the_model_finds_one_of_the_hub(served, tiny, monkeypatch):
    shutil.copytree(tiny, hub_cache.snapshot_folder(MODEL, COMMIT))
    source = str(ROOT / "data/heldout/mixed.jsonl.gz")
    text = Text(source=source, samples=4, length=16).model_dump()
    how = {"dtype": "float32", "batch_tokens": 64, "threads": 1}

    def run(stage, cfg, *options):
        arguments = ["--cfg", json.dumps(cfg), "--code", "0", "--device", "cpu", *options]
        monkeypatch.setattr("sys.argv", [stage, *arguments])
        importlib.import_module(f"stages.{stage}").main()

    known = ["--layout", "layout.json"]
    run("layout", {"path": MODEL, "revision": COMMIT}, "--out", "layout.json")
    run("calibrate", {**text, "holdout": 0.25}, *known, "--text", source, "--out", "tokens.safetensors")
    run("capture", how, *known, "--tokens", "tokens.safetensors", "--out", "capture")
    run("reference", {**how, "heldout": text}, *known, "--text", source, "--out", "reference")
    full = ["--model", MODEL, "--made", "layout.json"]
    run("fidelity", how, *known, *full, "--reference", "reference", "--out", "fidelity.json")
    solved = [f"layer_{layer}.safetensors" for layer in (1, 2)]
    for path in solved:
        store.write_tensors(path, {"expert_map": torch.arange(8), "groups": torch.arange(0)}, {})
    choice = {
        kind: {"name": kind, "path": MODEL, "method": "none", "steps": 8, "parts": ["up"]}
        for kind in checkpoint_card.STAGES[:-1]  # without a quantization
    }
    modeling = ["--modeling", str(ROOT / "mergemoe/compressed/modeling.py")]
    run("assemble", choice, *known, *modeling, "--solved", *solved, "--out", "whole")
    shard = model_folder.locate_checkpoint(MODEL, COMMIT) / "model.safetensors"
    assert Path("whole/model.safetensors").read_bytes() == shard.read_bytes()
    made = [path for path in Path().rglob("*") if path.is_file() and "hf" not in path.parts]
    assert {"layer_002.h5", "final.safetensors", "fidelity.json", "provenance.json"} <= {path.name for path in made}
    assert not [path for path in made if os.fsencode(shard.parent) in path.read_bytes()]


def test_fetch_says_what_to_name(served, tmp_path):
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    assert "so there is nothing to download from the hub" in refused(served, "--params", "params.yaml")
    assert "give either a model and --revision" in refused(served)
    assert "give either a model and --revision" in refused(served, MODEL, "--params", "params.yaml")


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"HF_HOME": "/a/b"},
        {"HF_HUB_CACHE": "~/c", "HF_HOME": "/a"},
        {"XDG_CACHE_HOME": "/x"},
        {"HUGGINGFACE_HUB_CACHE": "$HOME/d"},
    ],
)
def test_a_model_is_looked_for_where_huggingface_hub_puts_it(monkeypatch, variables):
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code = (
        "from huggingface_hub import constants as c, file_download as f; "
        f"print(c.HF_HUB_CACHE, f.repo_folder_name(repo_id='{MODEL}', repo_type='model'), sep='/')"
    )
    theirs = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert str(hub_cache.snapshot_folder(MODEL, COMMIT)) == f"{theirs}/snapshots/{COMMIT}"


def test_parsing_the_snakefile_imports_neither_the_hub_nor_torch():
    code = "import sys; import mergemoe.workflow.planning.preflight, stages.support.graph; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"huggingface_hub", "torch", "transformers"} & set(loaded.split())
