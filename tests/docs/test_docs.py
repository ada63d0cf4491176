"""What the documents say exists: links, pictures, commands, options, environment variables, modules."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from pathlib import Path

import pytest

from run_zemosaic import build_parser
from tools.options_table import BEGIN, options_table, with_table
from zemosaic_settings import OPTIONS_BY_KEY
from zemosaic_settings.values import parse_value
from zemosaic_ui.texts import Texts

ROOT = Path(__file__).resolve().parent.parent.parent
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PICTURES = ROOT / "docs" / "images"
OWN_FOLDERS = ("zemosaic_*", "locales", "tools", "benchmarks")
VARIABLE = re.compile(r"\bZEM[A-Z]*_[A-Z0-9_]*[A-Z0-9]\b")
LINK = re.compile(r"\]\(([^)\s]+)\)")
IN_LINE = re.compile(r"`([^`\n]+)`")
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
FENCE = re.compile(r"^```.*?\n(.*?)^```", re.MULTILINE | re.DOTALL)

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def links_of(document: Path) -> list[str]:
    """What a reader can click on or sees as a picture; what stands in a comment is neither."""
    return LINK.findall(COMMENT.sub("", text_of(document)))


def sources() -> list[Path]:
    folders = [folder for pattern in OWN_FOLDERS for folder in ROOT.glob(pattern) if folder.is_dir()]
    return [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]


def anchors(document: Path) -> set[str]:
    """The names under which a reader can jump to a heading."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(document)), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(plain.strip().replace(" ", "-"))
    return found


def commands() -> dict[str, argparse.ArgumentParser]:
    parser = build_parser(Texts("en"))
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(groups[0].choices)


def exit_code(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    """What the program would leave with because of its arguments alone; 0 when they are fine."""
    try:
        parser.parse_args(arguments)
    except SystemExit as leaving:  # also --help and --version, with code 0
        return int(leaving.code or 0)
    return 0


@every_document
def test_links_lead_somewhere(document):
    broken = []
    for link in links_of(document):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path) if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_picture_is_shown():
    shown = set()
    for document in DOCUMENTS:
        shown |= {(document.parent / link).resolve() for link in links_of(document)}
    forgotten = [path.name for path in sorted(PICTURES.iterdir()) if path.resolve() not in shown]
    assert forgotten == [], "show these pictures of docs/images in README.md or in docs/"


def test_pictures_are_small():
    assert [path.name for path in PICTURES.iterdir() if path.stat().st_size > 600_000] == []


def test_options_table_is_current():
    text = text_of(README)
    assert BEGIN in text
    assert with_table(text, options_table()) == text, "run: python -m tools.options_table README.md"


def test_environment_variables_of_the_code_are_documented_and_no_others():
    in_code = {name for path in sources() for name in VARIABLE.findall(text_of(path))}
    assert in_code
    assert set(VARIABLE.findall(text_of(README))) == in_code


def test_every_command_is_in_the_readme():
    text = text_of(README)
    assert [name for name in commands() if f"`zemosaic {name}" not in text] == []


@every_document
def test_command_lines_are_understood(document, capsys):
    """Every line that starts with the program's name must parse, so that no argument in a document is stale."""
    parser = build_parser(Texts("en"))
    text = text_of(document)
    lines = [line for block in FENCE.findall(text) for line in block.splitlines()] + IN_LINE.findall(text)
    for line in lines:
        words = line.partition("   #")[0].replace("...", "").replace("python run_zemosaic.py ", "zemosaic ")
        if not words.startswith("zemosaic ") or "|" in words:
            continue
        arguments = shlex.split(words.replace("[FOLDER]", "FOLDER"))[1:]
        if len(arguments) == 1 and arguments[0] in commands():  # the bare name of a command
            continue
        code = exit_code(parser, arguments)
        assert not code, f"{line}: {capsys.readouterr().err}"


@every_document
def test_options_and_their_values_exist(document):
    """``key=value`` in the documents: the option exists and takes the value."""
    text = FENCE.sub("", text_of(document))
    pairs = re.findall(r"`([a-z][a-z0-9_]+)=([^`\s]+)`", text)
    pairs += re.findall(r"--set ([a-z][a-z0-9_]+)=([^`\s]+)", text_of(document))
    assert [key for key, _ in pairs if key not in OPTIONS_BY_KEY and key != "key"] == []
    for key, value in pairs:
        if key != "key":
            parse_value(OPTIONS_BY_KEY[key], value)


@every_document
def test_modules_to_run_and_files_named_exist(document):
    text = text_of(document)
    modules = re.findall(r"python3? -m ((?:benchmarks|tools)\.\w+)", text)
    missing = [name for name in modules if not (ROOT / (name.replace(".", "/") + ".py")).is_file()]
    rooms = r"(?:zemosaic_\w+|tests|tools|benchmarks|locales|docs)"
    for name in IN_LINE.findall(text):
        if re.fullmatch(rf"(?:{rooms}/)?[\w./]+\.(?:py|cu|json|stars)", name) and "/" in name:
            missing += [] if (ROOT / name).exists() else [name]
    assert missing == []


def test_messages_quoted_in_the_guide_are_those_of_the_program():
    """``"..."`` in the first column of the table of symptoms; three dots stand for anything."""
    texts = json.loads(text_of(ROOT / "locales" / "en.json")).values()
    guide = text_of(ROOT / "docs" / "guide.md")
    quoted = re.findall(r'^\| [^|]*"([^"|]+)"[^|]* \|', guide, re.MULTILINE)
    assert len(quoted) >= 5
    for quote in quoted:
        pattern = ".*".join(re.escape(part.strip()) for part in quote.split("..."))
        assert any(re.search(pattern, text, re.IGNORECASE) for text in texts), quote
