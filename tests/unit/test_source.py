"""What may stand nowhere in the source, found in the syntax tree and not by words."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("broker", "edge_api", "remote_worker", "deploy")

#: calls by their last names, and why not
CALLS = {
    "eval": "runs text",
    "exec": "runs text",
    "os.system": "a shell",
    "os.popen": "a shell",
    "subprocess.getoutput": "a shell",
    "subprocess.getstatusoutput": "a shell",
    "yaml.load": "makes any object",
    "yaml.full_load": "makes objects",
    "yaml.unsafe_load": "makes any object",
    "tempfile.mktemp": "a name that another may take first",
    "ssl._create_unverified_context": "believes anybody",
}
MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle"}
#: keyword arguments with a value that is never right
KEYWORDS = {("shell", True), ("verify", False), ("check_hostname", False)}
ATTRIBUTES = {"CERT_NONE"}


def sins(source: str) -> Iterator[str]:
    """Name what is wrong with a module."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import() | ast.ImportFrom():
                yield from (f"imports {name}" for name in _imported(node) & MODULES)
            case ast.Call():
                yield from _sins_of_call(node)
            case ast.Assign(value=ast.Constant(value)):
                names = {
                    target.attr for target in node.targets if isinstance(target, ast.Attribute)
                }
                yield from (f"sets {n}={value}" for n in sorted(names) if (n, value) in KEYWORDS)
            case ast.Attribute() if node.attr in ATTRIBUTES:
                yield f"uses {node.attr}"
            case _:
                pass


def _imported(node: ast.Import | ast.ImportFrom) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    return {(node.module or "").partition(".")[0]}


def _sins_of_call(node: ast.Call) -> Iterator[str]:
    called = ast.unparse(node.func)
    if called in CALLS:
        yield f"calls {called}"
    for keyword in node.keywords:
        if isinstance(keyword.value, ast.Constant):
            value = keyword.value.value
            if (keyword.arg, value) in KEYWORDS:
                yield f"passes {keyword.arg}={value}"


FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))


def test_the_source_has_none_of_it() -> None:
    assert len(FILES) > 100
    found = {str(file.relative_to(ROOT)): list(sins(file.read_text())) for file in FILES}
    assert {name: said for name, said in found.items() if said} == {}


@pytest.mark.parametrize(
    "source,said",
    [
        ("import subprocess\nsubprocess.run('x', shell=True)", "passes shell=True"),
        ("requests.get(url, verify=False)", "passes verify=False"),
        ("session.verify = False", "sets verify=False"),
        ("import pickle", "imports pickle"),
        ("from pickle import loads", "imports pickle"),
        ("import yaml\nyaml.load(text, Loader=yaml.Loader)", "calls yaml.load"),
        ("eval('1')", "calls eval"),
        ("exec(text)", "calls exec"),
        ("os.system('x')", "calls os.system"),
        ("context.verify_mode = ssl.CERT_NONE", "uses CERT_NONE"),
        ("context.check_hostname = False", "sets check_hostname=False"),
    ],
)
def test_each_would_be_found(source: str, said: str) -> None:
    assert said in list(sins(source))


@pytest.mark.parametrize(
    "source", ["subprocess.run(['x'], shell=False)", "re.compile('x')", "literal_eval('1')"]
)
def test_what_is_right_is_left_alone(source: str) -> None:
    assert list(sins(source)) == []
