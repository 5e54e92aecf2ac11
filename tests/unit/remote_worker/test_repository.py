"""One name a repository, and none for what is an attack (attack 99)."""

import pytest

from remote_worker.repository import InvalidRepository, allowed, parse


@pytest.mark.parametrize(
    "text",
    [
        "Org/Repo",
        "org/repo",
        "https://github.com/Org/Repo",
        "https://GitHub.com/Org/Repo.git",
        "https://github.com/Org/Repo/",
        "https://github.com./Org/Repo",
        "git@github.com:Org/Repo.git",
        "github.com/org/repo",
    ],
)
def test_one_repository_has_one_name(text: str) -> None:
    repository = parse(text)
    assert repository.canonical == "github.com/org/repo"
    assert repository.url == "https://github.com/org/repo.git"
    assert parse(repository.canonical) == repository


@pytest.mark.parametrize(
    "text,canonical",
    [
        ("https://gitlab.example.org/Group/Sub/Repo.git", "gitlab.example.org/Group/Sub/Repo"),
        ("Org/.github", "github.com/org/.github"),
        ("file:///srv/git/x", "file:///srv/git/x"),
    ],
)
def test_other_names(text: str, canonical: str) -> None:
    assert parse(text).canonical == canonical
    assert parse(canonical).canonical == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        "--upload-pack=touch X",
        "-uX/y",
        "ext::sh -c touch% X",
        "fd::17/foo",
        "/local/path",
        "http://github.com/o/r",
        "git://github.com/o/r",
        "ssh://-oProxyCommand=x/y",
        "ssh://git@github.com/o/r",
        "https://user:pw@github.com/o/r",
        "https://user@github.com/o/r",
        "https://github.com:8443/o/r",
        "https://127.0.0.1/o/r",
        "https://0x7f.1/o/r",
        "https://2130706433/o/r",
        "https://[::1]/o/r",
        "https://localhost/o/r",
        "https://github.com/o/../r",
        "https://github.com/o/%2e%2e/r",
        "https://github.com/o//r",
        "https://github.com/o/./r",
        "https://github.com/o\\r/x",
        "https://github.com/o",
        "https://github.com/o/.git",
        "https://github.com/o/-r",
        "https://github.com/o/r?x=1",
        "https://github.com/o/r#x",
        "https://-x.com/o/r",
        "git@-oProxyCommand=x:o/r",
        "o/r\n",
        "o/r\x00",
        "ö/r",
        "\uff47ithub.com/o/r",
        "just-a-name",
        "o/" + "r" * 255,
        "file://host/x",
        "file:///",
        "file:///a/../b",
        "file:///a/./b",
        "file:////a",
        "FILE:///a",
        "file:///a;b",
    ],
)
def test_what_is_not_a_repository(text: str) -> None:
    with pytest.raises(InvalidRepository):
        parse(text)


@pytest.mark.parametrize(
    "text,patterns,answer",
    [
        ("Org/Repo", (), True),
        ("file:///srv/x", (), False),
        ("Org/Repo", ("Org/*",), True),
        ("Org/Repo", ("org/repo",), True),
        ("Org/Repo", ("https://github.com/Org/Repo.git",), True),
        ("Org/Repo", ("github.com/*",), True),
        ("Other/Repo", ("Org/*",), False),
        ("Organised/Repo", ("Org/*",), False),
        ("gitlab.example.org/Org/Repo", ("Org/*",), False),
        ("gitlab.example.org/Org/Repo", ("gitlab.example.org/Org/*",), True),
        ("Org/Repo", ("file:///srv/*",), False),
        ("file:///srv/x/y", ("file:///srv/*",), True),
        ("file:///srvx", ("file:///srv/*",), False),
        ("file:///srv/x", ("*/*", "github.com/*"), False),
    ],
)
def test_the_owner_decides(text: str, patterns: tuple[str, ...], answer: bool) -> None:
    assert allowed(parse(text), patterns) is answer
