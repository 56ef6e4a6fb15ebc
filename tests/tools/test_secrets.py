"""Which environment variables hold secrets, by their names; and references in URLs."""

from pathlib import Path

import pytest

from tenter.tools.secrets import named, resolve

VALUE = "x7-canary-value"


@pytest.mark.parametrize(
    "name",
    [
        "API_KEY",
        "OPENAIAPIKEY",
        "OPENAI_API_KEY",
        "PGPASSWORD",
        "MYSQL_PWD",
        "DB_PASSWORD",
        "AWS_SECRET_ACCESS_KEY",
        "KEY",
        "SSH_CREDENTIALS",
        "GITHUBTOKEN",
        "my_token",
        "ClientSecret",
        "ROOT_PASSWD",
    ],
)
def test_a_name_says_that_it_is_a_secret(name: str) -> None:
    assert named({name: VALUE}) == {VALUE}


@pytest.mark.parametrize(
    "name", ["PWD", "OLDPWD", "HOME", "MONKEY", "KEYBOARD", "TOKENIZERS", "SECRETARY"]
)
def test_other_names_do_not(name: str) -> None:
    assert named({name: VALUE}) == frozenset()


def test_a_path_that_is_there_is_no_secret(tmp_path: Path) -> None:
    assert named({"A_KEY": str(tmp_path)}) == frozenset()
    assert named({"A_KEY": "/bPxRfiCYEXAMPLEKEY"}) == {"/bPxRfiCYEXAMPLEKEY"}


def test_the_password_of_an_address_is_a_secret() -> None:
    found = named(
        {"DATABASE_URL": "postgresql://me:my%2Fpassword@db/x", "SENTRY_DSN": "https://[x"}
    )
    assert found == {"my%2Fpassword", "my/password"}
    assert named({"HOME_URL": "https://example.org/a:b@c"}) == frozenset()


def test_a_reference_in_a_url_is_spelled_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_PIN", "a/b@c")
    assert resolve("x://me:env:SHOP_PIN@", quoted=True) == ("x://me:a%2Fb%40c@", ["a/b@c"])
