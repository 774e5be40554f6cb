"""``python -m recbole_llamarec.generate_keys``: write the files that are made from the keys.

These are ``properties/model/LlamaRec.yaml`` and ``docs/keys.md``; a test compares them with what
this module makes.
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import yaml

from recbole_llamarec.keys import Key, keys_of
from recbole_llamarec.settings import all_keys
from recbole_llamarec.training_keys import TrainingKeys

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 110  # columns of a line of YAML
COMMENT_AT = 32  # column where comments begin
LAST_START = 52  # longer entries have their comment on the next line
OF_RECBOLE = "Training of the ranker: RecBole's keys (the retriever's are in retriever_config)"
# Heading, and how the keys of LlamaRec under it begin.
SECTIONS = (
    ("Training of the ranker: LlamaRec's keys", ("train_", "save_", "resume")),
    ("Data", ("exact_", "item_")),
    ("Retriever", ("retriever",)),
    ("Ranking method", ("ranking_", "likelihood_", "evidence_", "scorers")),
    ("Candidates", ("rerank_",)),
    ("Prompt", ("prompt_", "verbalizer_")),
    ("Language model", ("llm_",)),
    ("Adapter", ("lora_",)),
)
YAML_HEAD = """\
# LlamaRec (Yue et al., 2023, arXiv 2311.02089). RecBole reads this file in the place of a model's
# own property file: data set files, --config_files, a config dict and the command line override it.
# Made by python -m recbole_llamarec.generate_keys: change a key where it is stated, not here.
"""
MARKDOWN_HEAD = """\
# Keys

Every key of LlamaRec with its default, its type and its meaning. `~` is nothing (`None` on the
command line). RecBole's other keys stand in its own documentation. Made by
`python -m recbole_llamarec.generate_keys`: change a key where it is stated, not here.
"""


def main() -> None:
    """Write both files into the checkout that this module stands in."""
    for file, text in (
        (ROOT / "properties" / "model" / "LlamaRec.yaml", model_yaml()),
        (ROOT / "docs" / "keys.md", keys_markdown()),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        print(f"Written: {file.relative_to(ROOT)}")


def sections() -> list[tuple[str, list[Key]]]:
    """Every key under its heading.

    Raises:
        ValueError: a key belongs under no heading, or under two.
    """
    of_recbole = [*keys_of(TrainingKeys)]
    names = {stated.name for stated in of_recbole}
    ours = [stated for stated in all_keys() if stated.name not in names]
    for stated in ours:
        headings = [heading for heading, starts in SECTIONS if stated.name.startswith(starts)]
        if len(headings) != 1:
            raise ValueError(
                f"{stated.name} stands under {headings or 'no heading'}: change SECTIONS."
            )
    grouped = [
        (heading, [stated for stated in ours if stated.name.startswith(starts)])
        for heading, starts in SECTIONS
    ]
    return [(OF_RECBOLE, of_recbole), *grouped]


def model_yaml() -> str:
    """The property file: under headings, ``key: default  # (type) Meaning.`` in each line."""
    parts = [YAML_HEAD]
    for heading, keys in sections():
        parts.append("\n" + f"# --- {heading} ".ljust(101, "-") + "\n")
        parts += [_yaml_entry(stated) for stated in keys]
    return "".join(parts)


def keys_markdown() -> str:
    """The table of keys for people: a Markdown table for each heading."""
    parts = [MARKDOWN_HEAD]
    for heading, keys in sections():
        parts.append(f"\n## {heading}\n\n| key | default | type | meaning |\n|---|---|---|---|\n")
        for stated in keys:
            default = f"`{as_yaml(stated.default)}`"
            cells = (f"`{stated.name}`", default, stated.rule.kind, stated.help)
            parts.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n")
    return "".join(parts)


def as_yaml(value: Any) -> str:
    """A default as it stands in a property file: on one line, read alike by every YAML reader."""
    if value is None:
        return "~"
    if isinstance(value, str):
        if re.fullmatch(r"[A-Za-z][\w@.-]*", value) and yaml.safe_load(value) == value:
            return value
        return json.dumps(value) if "\n" in value else "'" + value.replace("'", "''") + "'"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_yaml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {as_yaml(held)}" for name, held in value.items()) + "}"
    if isinstance(value, float) and not isinstance(value, bool):
        # 1e-05 would be a text in YAML 1.1, which wants a point
        return re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))
    return str(value)


def _yaml_entry(stated: Key) -> str:
    entry = f"{stated.name}: {as_yaml(stated.default)}  "
    margin = " " * COMMENT_AT
    # the first line's comment begins behind the entry, or on the next line
    start = entry.ljust(COMMENT_AT) if len(entry) <= LAST_START else f"{entry.rstrip()}\n{margin}"
    taken = max(0, len(entry) - COMMENT_AT) if len(entry) <= LAST_START else 0
    lines = textwrap.wrap(
        f"({stated.rule.kind}) {stated.help}",
        WIDTH - COMMENT_AT - len("# "),
        initial_indent=" " * taken,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return start + f"\n{margin}".join(f"# {line.lstrip()}" for line in lines) + "\n"


if __name__ == "__main__":
    main()
