"""No password and no token is shown, whatever address holds it and whatever text quotes it."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mlmrepro import cli
from mlmrepro.compare.drift import Drift, Outcome
from mlmrepro.credentials import HIDDEN, address_problem, without_credentials
from mlmrepro.environments.matrix import read_outcomes
from mlmrepro.errors import UserError, first_line
from mlmrepro.report.ci import write_junit
from mlmrepro.report.drift import drift_document


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:secret@host/simple x", "https://***@host/simple x"),
        ("https://secret@host/simple", "https://***@host/simple"),
        ("see //user:secret@host/", "see //***@host/"),
        ("'http://user:se/cret@host'", "'http://***@host'"),
        ("http://user:se#cr?et@host", "http://***@host"),
        ("http://user:secret@x@host", "http://***@host"),
        ("http://user:se cret@host:1/s and", "http://***@host:1/s and"),
        ("http:/user:secret@host", "http:/***@host"),
        ("http:%2F%2Fuser:secret%40host", "http:%2F%2F***@host"),
        ("http:\\/\\/user:secret@host", "http:\\/\\/***@host"),
        ("http://user:secret", "http://***@"),
        ("http://user:secret@[::1/simple", "http://***@[::1/simple"),
        ("http://a:secret@h http://b:secret@i", "http://***@h http://***@i"),
        ("proxy user:secret@host:3128", "proxy ***@host:3128"),
        ("git+https://secret@host/x.git@v1", "git+https://***@host/x.git@v1"),
    ],
)
def test_an_address_loses_its_credentials_and_nothing_else(text: str, shown: str) -> None:
    """User, password and token go; the host, the path and the words around stay, malformed or not."""
    assert without_credentials(text, {}) == shown


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8080/simple",
        "no answer from http://127.0.0.1:8080: ask me@b.org, or see http://host:80. Or c@d",
        "http://[::1]:80/simple",
        "git+https://github.com/x/y@v1",
        "git@github.com:x/y",
        "file:///data/a:b@c",
        "see https://a.org: mail me@b.org",
        "File make.py:12, numpy @ 2.4",
        "ERROR: No matching distribution found for numpy@2",
    ],
)
def test_a_text_without_credentials_stays_as_it_is(text: str) -> None:
    """A port, a tag and a mail address are no passwords."""
    assert without_credentials(text, {}) == text


SECRETS = st.text(st.characters(exclude_characters="*\0", exclude_categories=["Cs"]), min_size=4, max_size=20)
NAMES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "UV_INDEX", "UV_INDEX_URL", "HTTPS_PROXY")
FORMS = (
    "https://user:{}@host/simple",
    "https://user:{}@[::1/simple",
    "http://user:{}@host:port/simple",
    "htp:/user:{}@host",
    "//user:{}@host",
    "user:{}@host:3128",
    "https://user:{}%40host/simple",
    "https://example.org/simple https://user:{}@host/simple",
)


@given(SECRETS, st.sampled_from(NAMES), st.sampled_from(FORMS), st.text(), st.text())
def test_no_secret_of_a_variable_survives_in_any_text(
    secret: str, name: str, form: str, before: str, after: str
) -> None:
    """It is found wherever it stands, as it is or percent-encoded, and not only in an address."""
    assume(secret.strip() and secret not in before + after and HIDDEN not in before + after)
    for given_as in (secret, quote(secret, safe="")):
        variables = {name: form.format(given_as)}
        for quoted in (secret, quote(secret, safe=""), repr(secret)[1:-1], json.dumps(secret)[1:-1]):
            if given_as == secret or quoted != repr(secret)[1:-1]:
                assert quoted not in without_credentials(f"{before}{quoted}{after}", variables)


@given(SECRETS.filter(lambda text: not any(map(str.isspace, text))), st.sampled_from(["https://", "//", "git+ssh://"]))
def test_a_secret_that_nobody_knows_goes_with_its_address(secret: str, start: str) -> None:
    """What a user types has no variable; the address alone tells."""
    assert without_credentials(f"bad {start}user:{secret}@host/simple", {}) == f"bad {start}{HIDDEN}@host/simple"


def test_pieces_of_a_torn_password_go_too() -> None:
    """Libraries that complain about a malformed address quote the piece that they took for the port."""
    for password in ("se/cret", "se#cret", "se?cret", "se cret", "se\ncret", "12/cret"):
        variables = {"PIP_INDEX_URL": f"http://user:{password}@h/"}
        text = without_credentials("cast to integer value as 'se' or '12' cret", variables)
        assert "cret" not in text
        assert "'se'" not in text or password.startswith("12")
        assert "'12'" not in text or not password.startswith("12")


def test_a_short_password_does_not_blank_out_the_text() -> None:
    """Of a harmless address nothing is taken; a short secret is taken where it stands as a word."""
    variables = {"PIP_INDEX_URL": "https://user:in@host/simple", "PIP_FIND_LINKS": "/opt/a@b https://example.org/in"}
    assert without_credentials("installing 'in' from user /opt/a@b", variables) == "installing '***' from user /opt/a@b"
    assert without_credentials("token hf_abcdefgh", {"HF_TOKEN": "hf_abcdefgh"}) == "token ***"


@pytest.mark.parametrize(
    "variables",
    [
        {"NO_PROXY": "localhost,127.0.0.1,::1", "no_proxy": "localhost,127.0.0.1,::1"},
        {"ALL_PROXY": "socks5://proxy:1080"},
        {"HTTP_PROXY": "10.0.0.1:3128", "https_proxy": "http://proxy:3128/"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_a_proxy_without_credentials_blanks_out_nothing(variables: dict[str, str]) -> None:
    """Hosts and ports are no secrets."""
    text = "data.jsonl, line 1 is no JSON object: proxy 10.0.0.1, port 3128 or 1080, localhost"
    assert without_credentials(text, variables) == text


def test_secrets_of_a_variable_are_known_by_its_name() -> None:
    """Keys and passwords go, short passwords too."""
    variables = {"AWS_SECRET_ACCESS_KEY": "abcd1234efgh", "UV_INDEX_X_PASSWORD": "short1", "SSH_KEY_FILE": "/home/key1"}
    assert without_credentials("abcd1234efgh short1 /home/key1", variables) == "*** *** /home/key1"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("https://user:secret@host:8080/simple", ""),
        ("https://host/simple /opt/wheels ./wheels file:///opt/wheels", ""),
        ("http://user:se/cret@host/simple", "not a port"),
        ("http://user:secret@host:port/simple", "not a port"),
        ("http://user:secret@[::1/simple", "brackets"),
        ("htp:/user:secret@host/simple", "https://"),
        ("https://user:secret@/simple", "no host"),
        ("https://host/simple http://user:secret", "not a port"),
    ],
)
def test_a_malformed_address_is_named_without_quoting_it(value: str, problem: str) -> None:
    """The answer says what is wrong and holds nothing of the value."""
    assert problem in address_problem(value)
    assert bool(problem) == bool(address_problem(value))
    assert "cret" not in address_problem(value)


def test_errors_hold_no_credentials() -> None:
    """Whoever raises an error, its text is clean before anybody shows it."""
    error = UserError("https://user:secret@host is wrong", remedy="try https://user:secret@host")
    assert "secret" not in f"{error} {error.problem} {error.remedy}"
    assert first_line(ValueError("no answer from https://user:secret@host/x")) == "no answer from https://***@host/x"


def test_the_command_line_prints_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither in an error, nor in the traceback of a bug, nor where an argument is refused."""

    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("https://user:secret@host has no answer")

    for arguments in (
        ["matrix", "--envs", "newest --index-url=http://user:secret@127.0.0.1:1/simple"],
        ["matrix", "--envs", "newest http://user:secret@127.0.0.1:1/simple"],
        ["matrix", "http://user:secret@127.0.0.1:1/simple"],
        ["http://user:secret@127.0.0.1:1/simple"],
        ["report", "http://user:secret@127.0.0.1:1/simple"],
    ):
        with pytest.raises(SystemExit) as exit_:
            cli.main(arguments)
        assert exit_.value.code == 2
        said = capsys.readouterr()
        assert "secret" not in said.out + said.err
        assert said.err
    monkeypatch.setattr("mlmrepro.environments.spec.parse_environments", crash)
    with pytest.raises(SystemExit):
        cli.main(["matrix"])
    said = capsys.readouterr()
    assert "Traceback" in said.err
    assert "secret" not in said.err


def test_a_report_of_an_old_folder_shows_none(tmp_path: Path) -> None:
    """What another version wrote into matrix.json is cleaned when it is read."""
    entry = {"requirements": ["transformers==5.0.0", "datasets==4.5.0"], "state": "failed"}
    problem = "Looking in http://user:secret@host/simple"
    content = {"schema": 1, "finished": True, "environments": {"a": {**entry, "problem": problem}}}
    (tmp_path / "matrix.json").write_text(json.dumps(content))
    outcomes = read_outcomes(tmp_path)
    assert outcomes == [Outcome("a", None, "Looking in http://***@host/simple")]
    write_junit(tmp_path / "junit.xml", drift_document(Drift(outcomes)))
    assert "secret" not in (tmp_path / "junit.xml").read_text()
