"""The documents against the code: every file, name, option, link and example that they mention must exist."""

import ast
import functools
import json
import pathlib
import re
import typing

import pytest

import sptad_jax
from sptad_jax.config import Config, apply_overrides, field_names, validate
from sptad_jax.data.annotations import load_annotations

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCUMENTS = [path for path in [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"] if path.is_file()]
GROUPS = "|".join(sorted({name.partition(".")[0] for name in field_names()}))
# not part of a longer path or dotted name, and no file such as train.py
OPTION = re.compile(rf"(?<![\w./-])(?:{GROUPS})\.(?!(?:py|json|md|log|npz)\b)[a-z_]\w*")
ASSIGNMENT = re.compile(rf"{OPTION.pattern}=(?:\[[^\]]*\]|[^\s`'\",;)\\]+)")
LINK = re.compile(r"\]\(([^)\s]+)\)")

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def read(document: pathlib.Path) -> str:
    return document.read_text(encoding="utf-8")


@functools.cache
def names_defined_in(path: pathlib.Path) -> frozenset[str]:
    """Functions, classes and module-level or class-level variables of a Python file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return frozenset(names)


def table_rows(text: str, width: int) -> list[list[str]]:
    """Cells of all rows of tables that have `width` columns, without headings."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|-")]
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in lines]
    return [row for row in rows if len(row) == width and row[0] not in ("Paper", "Table", "Option")]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def slug(heading: str) -> str:
    """The anchor that GitHub and its like give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_paper_table_names_what_exists():
    """A row that points to a file, function, class or test that was renamed, moved or never written."""
    rows = table_rows(read(ROOT / "docs" / "paper.md"), 4)
    assert len(rows) > 20
    for row in rows:
        tokens = [token for cell in row[1:] for token in quoted(cell)]
        files = [ROOT / token for token in tokens if token.endswith(".py")]
        assert files and all(path.is_file() for path in files), row
        known = frozenset().union(*map(names_defined_in, files))
        assert {token for token in tokens if not token.endswith(".py")} <= known, row
        assert quoted(row[2]), row  # the code itself is named, not just its file


def test_parity_table_lists_the_parity_tests():
    """A table that was not written anew after a test was added, renamed deleted, or with an error too large."""
    rows = [[*quoted(row[0]), *quoted(row[1]), *row[2:]] for row in table_rows(read(ROOT / "docs" / "parity.md"), 6)
            if quoted(row[0])]
    using = {(f"tests/{path.name}", node.name)
             for path in (ROOT / "tests").glob("test_*.py") for node in ast.parse(path.read_text(encoding="utf-8")).body
             if isinstance(node, ast.FunctionDef) and "parity" in [argument.arg for argument in node.args.args]
             and node.name.startswith("test_")}
    assert {(row[0], row[1]) for row in rows} == using
    assert all(float(error) <= float(tolerance) for *_, error, tolerance in rows)


def test_each_row_of_the_papers_tables_is_a_valid_config():
    """An ablation whose options are misspelt, or which `validate` refuses."""
    rows = table_rows(read(ROOT / "docs" / "paper.md"), 3)
    assert len(rows) >= 16
    for row in rows:
        options = [token for token in quoted(row[2]) if not token.startswith("--")]
        validate(apply_overrides(Config(), options))


@each_document
def test_options_exist(document):
    """A document that names an option under an old or wrong name, or gives it a value that it does not take."""
    text = read(document)
    assert set(OPTION.findall(text)) <= set(field_names())
    for assignment in ASSIGNMENT.findall(text):
        apply_overrides(Config(), [assignment.rstrip(".")])


def test_every_alternative_is_documented():
    """A new alternative of an option that docs/choices.md does not name."""
    text = read(ROOT / "docs" / "choices.md")
    for name in field_names():
        group, field = name.split(".")
        annotation = typing.get_type_hints(type(getattr(Config(), group)))[field]
        if typing.get_origin(annotation) is not typing.Literal:
            continue
        listed = re.findall(rf"`{re.escape(name)}`: ([^|;\n]*)", text)
        assert listed, f"{name} and its values are not in docs/choices.md"
        assert set(listed[0].strip().split(", ")) == {str(value) for value in typing.get_args(annotation)}, name


@each_document
def test_own_files_exist(document):
    """A document that names a file of this repository that is not there."""
    paths = re.findall(r"(?<![\w./-])(?:sptad_jax|data_prep|tests|configs|docs)/[\w/.-]*\.\w+", read(document))
    assert [path for path in paths if not (ROOT / path).is_file()] == []


@each_document
def test_own_modules_exist(document):
    """`python -m data_prep.NAME` for a command that is not there."""
    for module in re.findall(r"\b((?:data_prep|sptad_jax)(?:\.[a-z]\w*)+)\b", read(document)):
        path = ROOT / module.replace(".", "/")
        if module.removeprefix("sptad_jax.") in sptad_jax.__all__:
            continue
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), module


@each_document
def test_relative_links_resolve(document):
    """A link to a file or heading that was renamed; addresses elsewhere are not followed."""
    for target in LINK.findall(read(document)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), target
        if anchor and path.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", read(path), re.MULTILINE)
            assert anchor in [slug(heading) for heading in headings], target


def test_annotation_example_is_read_without_complaint(tmp_path):
    """An example that the reader itself would mend or refuse."""
    (block,) = re.findall(r"```json\n(.*?)```", read(ROOT / "docs" / "datasets.md"), re.DOTALL)
    path = tmp_path / "segments.json"
    path.write_text(block, encoding="utf-8")
    videos, exceptions = load_annotations(path)
    assert exceptions == []
    assert {v.name: len(v.annotations) for v in videos} == {
        name: len(entry["annotations"]) for name, entry in json.loads(block)["database"].items()
    }


def test_options_of_custom_are_the_documented_ones(capsys):
    """An option of data_prep.custom that the table lacks, or one that exists in the table alone."""
    from data_prep import custom

    with pytest.raises(SystemExit):
        custom.main(["--help"])
    offered = set(re.findall(r"^  (--[a-z-]+)", capsys.readouterr().out, re.MULTILINE))
    rows = [row for row in table_rows(read(ROOT / "docs" / "datasets.md"), 3) if row[0].startswith("`--")]
    assert {quoted(row[0])[0] for row in rows} == offered
