import pytest

from raysearch.cluster.auth import auth_headers, find_token
from raysearch.errors import ConfigError


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    for variable in ("RAYSEARCH_TOKEN", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_places_in_order(home, monkeypatch):
    assert find_token() is None
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("of Ray\n")
    assert find_token() == "of Ray"
    (home / "mine").write_text(" by path ")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "mine"))
    assert find_token() == "by path"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the environment")
    assert find_token() == "of the environment"
    monkeypatch.setenv("RAYSEARCH_TOKEN", "ours")
    assert find_token() == "ours"
    assert find_token(home / "mine") == "by path"


def test_a_named_file_must_hold_a_token(home, monkeypatch):
    with pytest.raises(ConfigError, match=r"token_file names .*nowhere, which cannot be read"):
        find_token(home / "nowhere")
    (home / "empty").touch()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "empty"))
    with pytest.raises(ConfigError, match=r"RAY_AUTH_TOKEN_PATH names .*empty, which is empty"):
        find_token()
    (home / "two").write_text("a\nb")
    with pytest.raises(ConfigError, match=r"token_file names .*two, which holds no token: that is one line"):
        find_token(home / "two")
    (home / "two").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"token_file names .*two, which cannot be read: it is no text"):
        find_token(home / "two")


def test_the_header():
    assert auth_headers("abc") == {"Authorization": "Bearer abc"}
    assert auth_headers(None) == {}
