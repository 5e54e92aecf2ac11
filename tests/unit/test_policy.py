"""Which repository is which, which lane a job lies in, and which worker may see it."""

from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import InvalidPayload, InvalidRepository, NotAuthorized
from broker.policy import Lane, Policy, canonical_repository, lane_of, merge, repository_pattern

SAME = [
    "Org/Repo",
    "org/repo",
    "Org/Repo/",
    "Org/Repo.git",
    "github.com/Org/Repo",
    "https://github.com/Org/Repo",
    "https://github.com/Org/Repo/",
    "https://github.com/Org/Repo.git",
    "https://GitHub.com/Org/Repo.git/",
    "HTTPS://github.com/org/repo",
    "git@github.com:Org/Repo",
    "git@github.com:Org/Repo.git",
]

OTHERS = [
    ("gitlab.com/Group/Sub/Repo", "gitlab.com/Group/Sub/Repo"),
    ("https://gitlab.com/Group/Repo.git", "gitlab.com/Group/Repo"),
    ("git@gitlab.example.org:Group/Repo.git", "gitlab.example.org/Group/Repo"),
    ("my.org/repo", "github.com/my.org/repo"),
    ("Org/.github", "github.com/org/.github"),
    ("Org/_site", "github.com/org/_site"),
    ("Org/a.b-c_d", "github.com/org/a.b-c_d"),
    ("file:///srv/git/App.git", "file:///srv/git/App.git"),
    ("file:///srv/git/App/", "file:///srv/git/App"),
]

HOSTILE = [
    # attack 99: what git would take for an option or for a program to run
    "--upload-pack=touch X",
    "-u touch X",
    "-uX/y",
    "Org/--upload-pack=x",
    "--upload-pack=x/y",
    "https://github.com/-u/x",
    "ext::sh -c touch% X",
    "ext::sh/x",
    "fd::7",
    "fd::7/x",
    # other ways than https and git@
    "http://github.com/Org/Repo",
    "git://github.com/Org/Repo",
    "ssh://git@github.com/Org/Repo",
    "ssh://-oProxyCommand=touch/Org/Repo",
    "git@-oProxyCommand=touch:Org/Repo",
    "root@github.com:Org/Repo",
    "git+ssh://github.com/Org/Repo",
    "ftp://github.com/Org/Repo",
    "javascript://github.com/Org/Repo",
    "//github.com/Org/Repo",
    # paths of this machine
    "/local/path",
    "./Org/Repo",
    "../Org/Repo",
    "~/Repo",
    "file://Org/Repo",
    "file:///",
    "file:////etc",
    "file:///srv/../etc",
    "file:///srv/./x",
    "file:///srv//x",
    "file:///srv/%2e%2e/x",
    "file:///srv/x?y",
    "file:///srv/x#y",
    "file:///srv\\x",
    # user, port, query
    "https://user:pw@github.com/Org/Repo",
    "https://token@github.com/Org/Repo",
    "https://github.com:8443/Org/Repo",
    "https://github.com:443/Org/Repo",
    "https://github.com:/Org/Repo",
    "https://github.com:x/Org/Repo",
    "https://github.com/Org/Repo?ref=x",
    "https://github.com/Org/Repo#x",
    # hosts that are none, or are addresses in any base
    "https:///Org/Repo",
    "https://localhost/Org/Repo",
    "https://github.com./Org/Repo",
    "https://.github.com/Org/Repo",
    "https://-github.com/Org/Repo",
    "https://github..com/Org/Repo",
    "https://127.0.0.1/Org/Repo",
    "https://127.1/Org/Repo",
    "https://0177.0.0.1/Org/Repo",
    "https://0x7f.0.0.1/Org/Repo",
    "https://0x7f.1/Org/Repo",
    "https://127.0.0.0x1/Org/Repo",
    "https://a.0x/Org/Repo",
    "https://[::1]/Org/Repo",
    "https://[::ffff:127.0.0.1]/Org/Repo",
    "https://[broken/Org/Repo",
    "git@127.0.0.1:Org/Repo",
    "https://gith\u0443b.com/Org/Repo",
    "https://xn--gthub-cua.com\\@evil.com/Org/Repo",
    "https://github.com\\Org\\Repo",
    # segments
    "Org",
    "Org/",
    "/Repo",
    "Org//Repo",
    "Org/Repo//",
    "https://github.com//Org/Repo",
    "git@github.com:/Org/Repo",
    "git@github.com:Repo",
    "Org/.",
    "Org/..",
    "Org/...",
    "../Repo",
    "Org/../Repo",
    "Org/%2e%2e",
    "Org/Re po",
    "Org/Repo\n",
    "Org/Repo\x00",
    "Org/Repo\u202e",
    "Org/R\u00e9po",
    "\uff2frg/Repo",
    "Org/Repo;x",
    "Org/$(x)",
    "Org/`x`",
    "Org/*",
    "Org/" + "x" * 255,
    "",
    " ",
    # would be another repository when read once more
    "Org/.git",
    "Org/Repo.git.git",
    "Org/Repo.GIT",
]


@pytest.mark.parametrize("text", SAME)
def test_one_repository_has_one_form(text: str):
    assert canonical_repository(text) == "github.com/org/repo"


@pytest.mark.parametrize("text, expected", OTHERS)
def test_other_repositories_keep_theirs(text: str, expected: str):
    assert canonical_repository(text) == expected


@pytest.mark.parametrize("text", HOSTILE)
def test_what_no_worker_may_be_handed(text: str):
    with pytest.raises(InvalidRepository):
        canonical_repository(text)


# blanks around a job's repository are forgiven
@pytest.mark.parametrize("text", [text for text in HOSTILE if text != "Org/Repo\n"])
def test_a_codex_job_with_such_a_repository_is_refused(text: str):
    with pytest.raises(InvalidRepository):
        lane_of("q", "codex_exec", {"repository": text})


NEAR = st.text(
    alphabet=string.ascii_letters + string.digits + "./:@-_%~?#\\*[]\x00\u00e9 ", max_size=40
)


@given(st.one_of(NEAR, NEAR.map("https://".__add__), NEAR.map("git@".__add__), st.text()))
def test_what_is_accepted_is_plain_and_stays_as_it_is(text: str):
    try:
        form = canonical_repository(text)
    except InvalidRepository:
        return
    assert canonical_repository(form) == form
    assert form.isascii()
    assert form.isprintable()
    segments = form.removeprefix("file:///").split("/")
    assert not {"", ".", ".."} & set(segments)
    if not form.startswith("file:///"):
        assert len(segments) >= 3
        assert not any(segment.startswith("-") for segment in segments)
        assert set(form) <= set(string.ascii_letters + string.digits + "./-_")


@given(st.text())
def test_a_pattern_is_canonical_or_refused(text: str):
    try:
        form = repository_pattern(text)
    except InvalidRepository:
        return
    assert repository_pattern(form) == form


@pytest.mark.parametrize(
    "pattern, repository, fits",
    [
        ("Org/*", "Org/Repo", True),
        ("Org/*", "org/other", True),
        ("Org/*", "Organization/Repo", False),
        ("Org/*", "gitlab.com/Org/Repo", False),
        ("Org/*", "github.com/Org/Sub/Repo", False),
        ("https://github.com/Org/*", "git@github.com:Org/Repo.git", True),
        ("Org/app-*", "Org/app-1", True),
        ("Org/app-*", "Org/app", False),
        ("Org/*-app-*", "Org/x-app-app-y", True),
        ("Org/a*b*c", "Org/abbc", True),
        ("Org/a*b*c", "Org/acb", False),
        ("*/*", "Org/Repo", True),
        ("*/*", "gitlab.com/Org/Repo", False),
        ("gitlab.com/*/*", "gitlab.com/Org/Repo", True),
        ("gitlab.com/Group/*", "gitlab.com/group/Repo", False),
        ("Org/Repo", "Org/Repo", True),
        ("Org/R.po", "Org/Repo", False),
        ("Org/Repo", "Org/Repo2", False),
    ],
)
def test_globs_stay_within_a_segment(pattern: str, repository: str, fits: bool):
    eligible = merge(Policy(repositories=(repository_pattern(pattern),)))
    lane = lane_of("q", "codex_exec", {"repository": repository})
    assert eligible.allows(lane) is fits


def test_many_stars_cost_no_more_than_few():
    pattern = repository_pattern("gitlab.com/Org/" + "a*" * 60 + "b")
    lane = Lane("q", "t", "gitlab.com/Org/" + "a" * 200, ())
    assert not merge(Policy(repositories=(pattern,))).allows(lane)


@pytest.mark.parametrize("text", ["*", "Org/**/..", "-*/x", "ext::*", "https://*/Org/Repo", "Org/"])
def test_patterns_that_make_no_sense(text: str):
    with pytest.raises(InvalidRepository):
        repository_pattern(text)


# -- lanes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "job_type, payload, repository",
    [
        ("codex_exec", {"repository": " Org/Repo "}, "github.com/org/repo"),
        ("codex_exec", {}, None),
        ("codex_skill", {"inputs": {"repo": "Org/A"}}, "github.com/org/a"),
        ("codex_skill", {"inputs": {"repository": "Org/B"}}, "github.com/org/b"),
        ("codex_skill", {"inputs": {"repo": "Org/A", "repository": "Org/B"}}, "github.com/org/a"),
        ("codex_skill", {"inputs": {}, "repository": "Org/C"}, "github.com/org/c"),
        ("codex_skill", {"inputs": "Org/A", "repository": "Org/C"}, "github.com/org/c"),
        ("echo", {"repository": "Org/Repo"}, "github.com/org/repo"),
        # other types have none rather than a bad one (decision 34)
        ("echo", {"repository": "--upload-pack=x"}, None),
        ("echo", {"repository": ["Org/Repo"]}, None),
        ("echo", {"inputs": {"repo": "Org/A"}}, None),
    ],
)
def test_the_repository_of_a_job(job_type: str, payload: dict[str, Any], repository: str | None):
    assert lane_of("q", job_type, payload).repository == repository


@pytest.mark.parametrize("named", [7, ["Org/Repo"], {"a": 1}, True, ""])
def test_a_codex_job_names_its_repository_by_a_string(named: Any):
    with pytest.raises(InvalidRepository):
        lane_of("q", "codex_exec", {"repository": named})


@pytest.mark.parametrize(
    "required", ["gpu", 7, {"gpu": 1}, [1], [None], ["gpu", ""], [["gpu"]], "", 0, False, {}]
)
def test_capabilities_are_a_list_of_strings(required: Any):
    with pytest.raises(InvalidPayload):
        lane_of("q", "echo", {"requiredCapabilities": required})


def test_capabilities_are_a_set():
    lane = lane_of("q", "echo", {"requiredCapabilities": ["b", "a", "b"]})
    assert lane.capabilities == ("a", "b")
    assert lane == lane_of("q", "echo", {"requiredCapabilities": ["a", "b"]})
    assert lane_of("q", "echo", {"requiredCapabilities": None}).capabilities == ()
    assert lane_of("q", "echo", {"requiredCapabilities": []}).capabilities == ()


def test_a_header_names_capabilities_over_the_payload():
    lane = lane_of("q", "echo", {"requiredCapabilities": ["cpu"]}, ["gpu"])
    assert lane.capabilities == ("gpu",)


PART = st.text(max_size=8)


@given(PART, PART, st.none() | PART, st.lists(PART, max_size=3))
def test_a_lane_survives_its_spec(queue: str, kind: str, repository: str | None, caps: list[str]):
    lane = Lane(queue, kind, repository, tuple(caps))
    assert Lane.from_spec(lane.spec()) == lane
    assert len(lane.key) == 16
    assert set(lane.key) <= set("0123456789abcdef")


def test_lanes_differ_by_each_of_their_parts():
    lanes = [
        Lane("q", "t", None, ()),
        Lane("p", "t", None, ()),
        Lane("q", "u", None, ()),
        Lane("q", "t", "r", ()),
        Lane("q", "t", "", ()),
        Lane("q", "t", None, ("c",)),
        Lane("q", "t", None, ("c", "d")),
        Lane("q", "t", None, ("c,d",)),
    ]
    assert len({lane.key for lane in lanes}) == len(lanes)


def test_a_lane_keeps_its_key():
    # it names keys in Redis that another version of us has written
    assert Lane("remote", "codex_exec", "github.com/org/repo", ("gpu",)).key == "a46c5f42013f67fe"


# -- merging (contract.md, "Policy") ---------------------------------------------------------

JOB = {"repository": "Org/Repo", "requiredCapabilities": ["gpu"]}


@pytest.mark.parametrize(
    "policy, wanted, declared, fits",
    [
        # nothing restricts; capabilities are then the request's
        (Policy(), None, ("gpu",), True),
        (Policy(), None, ("gpu", "x"), True),
        (Policy(), None, None, False),
        (Policy(), None, (), False),
        (Policy(), ("codex_exec",), ("gpu",), True),
        (Policy(), ("echo",), ("gpu",), False),
        (Policy(), (), ("gpu",), False),
        # the token's capabilities are the only ones once it has any list
        (Policy(capabilities=("gpu",)), None, None, True),
        (Policy(capabilities=("gpu",)), None, ("x",), True),
        (Policy(capabilities=("x",)), None, ("gpu",), False),
        (Policy(capabilities=()), None, ("gpu",), False),
        # types: the intersection
        (Policy(types=("codex_exec", "echo")), None, ("gpu",), True),
        (Policy(types=("codex_exec", "echo")), ("codex_exec",), ("gpu",), True),
        (Policy(types=("codex_exec", "echo")), ("echo", "other"), ("gpu",), False),
        (Policy(types=("echo",)), None, ("gpu",), False),
        (Policy(types=()), None, ("gpu",), False),
        (Policy(types=("codex_exec",)), (), ("gpu",), False),
        # repositories and queues: the token's alone, and an empty list allows nothing
        (Policy(repositories=("github.com/org/*",)), None, ("gpu",), True),
        (Policy(repositories=("github.com/other/*",)), None, ("gpu",), False),
        (Policy(repositories=()), None, ("gpu",), False),
        (Policy(queues=("q",)), None, ("gpu",), True),
        (Policy(queues=("p",)), None, ("gpu",), False),
        (Policy(queues=()), None, ("gpu",), False),
    ],
)
def test_who_may_see_a_lane(
    policy: Policy, wanted: tuple[str, ...] | None, declared: tuple[str, ...] | None, fits: bool
):
    eligible = merge(policy, allowed_types=wanted, worker_capabilities=declared)
    assert eligible.allows(lane_of("q", "codex_exec", JOB)) is fits


@pytest.mark.parametrize("types", [("codex_exec",), ()])
def test_types_that_the_token_has_none_of_are_refused(types: tuple[str, ...]):
    with pytest.raises(NotAuthorized):
        merge(Policy(types=types), allowed_types=("echo",))


def test_a_job_without_a_repository_is_for_tokens_without_such_a_list():
    lane = lane_of("q", "echo", {})
    assert merge(Policy()).allows(lane)
    assert not merge(Policy(repositories=("github.com/*/*",))).allows(lane)


WORDS = st.sampled_from(["a", "b", "c"])
Words = tuple[str, ...] | None
SOME = st.none() | st.frozensets(WORDS).map(tuple)


@given(SOME, SOME, SOME, SOME, SOME)
def test_a_request_never_widens_a_policy(
    types: Words, capabilities: Words, queues: Words, wanted: Words, declared: Words
):
    policy = Policy(types=types, capabilities=capabilities, queues=queues)
    try:
        eligible = merge(policy, allowed_types=wanted, worker_capabilities=declared)
    except NotAuthorized:
        assert wanted
        assert types is not None
        assert not set(types) & set(wanted)
        return
    for word in "abc":
        lane = Lane(word, word, None, (word,))
        if eligible.allows(lane):
            assert types is None or word in types
            assert queues is None or word in queues
            assert wanted is None or word in wanted
            assert word in (declared or () if capabilities is None else capabilities)
