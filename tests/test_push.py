"""`export --push`: uploaded to a stand-in for the hub, refused, or kept and said."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest
from huggingface_hub import constants, hf_api

from helpers import Fails
from modicum import cli, hub

TOKEN = "hf_secretsecretsecret"


class Hub(BaseHTTPRequestHandler):
    """What of the hub's interface an upload of small files needs."""

    refuses: ClassVar[int] = 0
    spoils: ClassVar[bytes | None] = None  # what it sends in an answer's place, then hangs up
    spoils_all: ClassVar[bool] = False  # not only what is posted
    made: ClassVar[dict[str, Any]] = {}
    files: ClassVar[dict[str, bytes]] = {}

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, found: Any, status: int = 200) -> None:
        if self.spoils is not None and (self.spoils_all or self.command == "POST"):
            self.wfile.write(self.spoils)
            self.close_connection = True
            return
        body = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.answer({})

    def do_GET(self) -> None:
        self.answer({"id": "me/mine", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        assert self.headers["Authorization"] == f"Bearer {TOKEN}"
        if self.refuses:
            self.answer({"error": "Invalid username or password."}, self.refuses)
        elif self.path == "/api/repos/create":
            Hub.made = json.loads(text)
            self.answer({"url": f"http://{self.headers['Host']}/me/mine"})
        elif "/preupload/" in self.path:
            named = [file["path"] for file in json.loads(text)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer({"files": [{"path": name, **modes} for name in named]})
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in text.splitlines()]
            kept = [line["value"] for line in lines if line["key"] == "file"]
            Hub.files = {of["path"]: base64.b64decode(of["content"]) for of in kept}
            url = f"http://{self.headers['Host']}/me/mine/commit/{'0' * 40}"
            self.answer({"commitUrl": url, "commitOid": "0" * 40, "success": True})
        else:
            self.answer({"errors": [], "warnings": []})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The stand-in's address, which the library takes for the hub's."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{httpd.server_port}"
    hub_of(monkeypatch, address)
    for name, value in {"refuses": 0, "spoils": None, "spoils_all": False}.items():
        monkeypatch.setattr(Hub, name, value)
    yield address
    httpd.shutdown()
    httpd.server_close()
    hub.silence.cache_clear()


def hub_of(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(hf_api.api, "endpoint", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.silence.cache_clear()


def push(out: Path, *more: str) -> list[str]:
    return ["export", "--model", "tiny", "--out", str(out), "--push", "me/mine", *more]


def test_an_export_is_uploaded(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert cli.run(push(out, "--private")) == 0
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    assert Hub.files == files and "model.safetensors" in files
    assert (Hub.made["name"], Hub.made["organization"]) == ("mine", "me")
    assert Hub.made.get("private") is True or Hub.made.get("visibility") == "private"
    told = capsys.readouterr()
    assert f"uploaded {len(files)} files, 4.0 MB, to {server}/me/mine (private): " in told.out
    assert TOKEN not in told.out + told.err


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_hub_that_refuses(
    server: str, tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(Hub, "refuses", status)
    out = tmp_path / "out"
    line = fails(*push(out))
    assert f"{out} is there, and was not uploaded (" in line
    assert str(status) in line and line.rstrip().endswith(f"later: hf upload me/mine {out}")
    assert TOKEN not in line
    assert (out / "model.safetensors").is_file()


OK = b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n"


@pytest.mark.parametrize(
    ("spoils", "all_of_it", "why"),
    [
        (b"", False, "disconnected"),
        (b"hello\r\n\r\n", True, "does not answer (hello)"),
        (OK + b"{}", False, "KeyError: 'url'"),
        (OK + b"[]", False, "TypeError: "),
        (OK + b"<html>log in</html>", False, "JSONDecodeError: "),
        (OK.replace(b"200 OK", b"403 no") + b'{"error": "\\u001b[31mred"}', False, "[31mred"),
    ],
)
def test_a_hub_that_is_none(
    server: str,
    tmp_path: Path,
    fails: Fails,
    monkeypatch: pytest.MonkeyPatch,
    spoils: bytes,
    all_of_it: bool,
    why: str,
) -> None:
    """A connection that breaks, the page of a hotel: one line, and the way to do it later can be pasted."""
    monkeypatch.setattr(Hub, "spoils", spoils)
    monkeypatch.setattr(Hub, "spoils_all", all_of_it)
    out = tmp_path / "my model"
    line = fails(*push(out))
    assert f"{out} is there, and was not uploaded (" in line and why in line
    assert line.rstrip().endswith(f"later: hf upload me/mine '{out}'") and "\x1b" not in line
    assert (out / "model.safetensors").is_file()


def test_without_a_network_or_a_token(
    tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    """What would be uploaded, where to, why it was not, and how to do it later."""
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    line = fails(*push(tmp_path / "one"))
    assert f"to {server}/me/mine (public)): there is no token: `hf auth login`" in line
    monkeypatch.undo()
    hub_of(monkeypatch, "http://127.0.0.1:9")
    line = fails(*push(tmp_path / "two"))
    assert "127.0.0.1:9 does not answer" in line and "7 files, 4.0 MB" in line
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.silence.cache_clear()
    assert "HF_HUB_OFFLINE is set; later" in fails(*push(tmp_path / "three"))
    hub.silence.cache_clear()


def test_a_dry_run_asks_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never() -> str:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(hub, "silence", never)
    assert cli.run(push(tmp_path / "out", "--dry-run", "--json")) == 0
    told = capsys.readouterr()
    done = json.loads(told.out)
    assert done["out"] == str(tmp_path / "out")
    assert done["hub"].startswith("would upload 7 files, 4.0 MB, to http")
    assert done["hub"].endswith("/me/mine (public)")


@pytest.mark.parametrize("name", ["me/a--b", "me/a.git", "me/..", "me/" + "a" * 99])
def test_names_that_the_hub_does_not_take(name: str, tmp_path: Path, fails: Fails) -> None:
    """Said before anything is written, also by a dry run."""
    for more in ([], ["--dry-run"]):
        line = fails("export", "--out", str(tmp_path / "out"), "--push", name, *more)
        assert line.startswith("error: --push: ") and f"{name!r}" in line
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["mine", "me/", "a/b/c", "me/my model", "../x"])
def test_names_that_the_hub_has_not(name: str, tmp_path: Path, fails: Fails) -> None:
    line = fails("export", "--out", str(tmp_path / "out"), "--push", name)
    assert f"--push must name a model on the hub as USER/NAME, not {name!r}" in line
    assert not (tmp_path / "out").exists()


def test_private_is_for_a_push(tmp_path: Path, fails: Fails) -> None:
    assert "--push must name" in fails("export", "--out", str(tmp_path / "out"), "--private")
