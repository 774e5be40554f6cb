"""The wording of the ranking prompt, and where its text may be cut for tokenising.

The prompt is LlamaRec's (Yue et al. 2023, arXiv 2311.02089, section 3.3), in few words, and with
each candidate's label behind its title, where a small model learns sooner to find it
(docs/tuning.md). properties/paper.yaml has the paper's wording.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter

from recbole_llamarec.keys import WORDING, check_fields, key

TITLE_MARK = "\0"  # stands for a title while a layout is made; keys.WORDING does not contain it

PLACEHOLDERS = {  # field: (required, optional)
    "text": ({"history", "candidates"}, {"instruction"}),
    "history_item": ({"title"}, {"number"}),
    "candidate_item": ({"title"}, {"label"}),  # not every ranker needs labels
    "response": ({"label"}, set()),
}


@dataclass(frozen=True)
class PromptTemplate:
    """The wording of a prompt; each field is the YAML key of the same name behind ``prompt_``.

    Raises:
        ValueError: A field is no text, has wrong placeholders, is not shown, or its titles could
            not be tokenised apart from the rest; all faults of a kind are named together, each
            with its key.
    """

    instruction: str = key(
        "Given user history in chronological order, recommend an item from the candidate pool "
        "with its index letter.",
        WORDING,
        "What the model is asked to do, where prompt_text shows it.",
    )
    text: str = key(
        "History: {history}\nCandidates: {candidates}\nNext: (",
        WORDING,
        "The whole prompt, with {history}, {candidates} and, where it is to stand, {instruction}. "
        "The default is a short one, for small models; properties/paper.yaml has the paper's.",
    )
    history_item: str = key("{title}", WORDING, "One item of the history.")
    candidate_item: str = key("{title} ({label})", WORDING, "One candidate.")
    separator: str = key(" |", WORDING, "Between items; begins with a space.")
    empty_history: str = key("none", WORDING, "In the place of a history without items.")
    response: str = key("{label}", WORDING, "What follows the prompt; one token.")

    def __post_init__(self) -> None:
        check_fields(self, "prompt_")
        errors = [
            error
            for field, (required, optional) in PLACEHOLDERS.items()
            if (error := placeholder_error(field, getattr(self, field), required, optional))
        ]
        if self.instruction != type(self).instruction and "{instruction}" not in self.text:
            errors.append(
                f"prompt_instruction is {self.instruction!r}, but prompt_text does not show it: "
                "put {instruction} where it is to stand."
            )
        errors = errors or self._layout_errors()
        if errors:
            raise ValueError("\n".join(errors))

    def render(
        self, history_titles: Sequence[str], candidate_titles: Sequence[str], labels: Sequence[str]
    ) -> str:
        """Return the text of a prompt; the history's numbers start at 1."""
        history = self.separator.join(
            self.history_item.format(number=number, title=title)
            for number, title in enumerate(history_titles, start=1)
        )
        candidates = self.separator.join(
            self.candidate_item.format(label=label, title=title)
            for label, title in zip(labels, candidate_titles, strict=False)
        )
        return self.text.format(
            instruction=self.instruction,
            history=history or self.empty_history,
            candidates=candidates,
        )

    def _layout_errors(self) -> list[str]:
        """What forbids tokenising the titles apart from the rest of the prompt."""
        errors = []
        if not self.separator.startswith(" "):
            errors.append(
                f"prompt_separator is {self.separator!r}: it must begin with a space, "
                "so that a title's tokens end there; write ' ' or ' | '."
            )
        for field in ("history_item", "candidate_item"):
            value = getattr(self, field)
            if value != value.strip():
                errors.append(
                    f"prompt_{field} is {value!r}: it must neither begin nor end with a space or "
                    "line break; put these into prompt_text or prompt_separator."
                )
        if self.text.index("{history}") > self.text.index("{candidates}"):
            errors.append(
                f"prompt_text is {self.text!r}: {{history}} must stand before {{candidates}}."
            )
        if errors:
            return errors
        start, middle, _ = self.render([TITLE_MARK], [TITLE_MARK], ["A"]).split(TITLE_MARK)
        for static, where, after_title in (
            (start, "before the first title of {history}", False),
            (middle, "between {history} and the first title of {candidates}", True),
        ):
            if not cut_points(static, after_title):
                errors.append(
                    f"prompt_text is {self.text!r}: {where} there must be a space that follows "
                    "another character than a space or line break."
                )
        return errors


def placeholder_error(field: str, value: str, required: set[str], optional: set[str]) -> str | None:
    """Return what is wrong with a field's placeholders, each of which may stand once, or None."""
    allowed = ", ".join(f"{{{name}}}" for name in sorted(required | optional))
    try:
        parts = [part for part in Formatter().parse(value) if part[1] is not None]
    except ValueError as error:
        fault = f"cannot be read ({error}); write a literal brace twice"
    else:
        names = [str(name) for _, name, _, _ in parts]
        if unknown := [name for name in names if name not in required | optional]:
            fault = f"has the unknown placeholder {{{unknown[0]}}}; write a literal brace twice"
        elif missing := sorted(required - set(names)):
            fault = f"lacks the placeholder {{{missing[0]}}}; add it"
        elif len(names) > len(set(names)):
            fault = "has a placeholder twice; keep one"
        elif any(spec or conversion for _, _, spec, conversion in parts):
            fault = "has a format or conversion in a placeholder; write the bare name"
        else:
            return None
    return f"prompt_{field} is {value!r}: it {fault}. Allowed placeholders: {allowed}."


def cut_points(text: str, after_title: bool, special: tuple[str, ...] = ()) -> list[int]:
    """Return where a text may be cut for tokenising: before a space that follows a non-space.

    Args:
        text: A static text of the prompt.
        after_title: Whether a title comes directly before, so that position 0 counts.
        special: Special tokens; the text behind one is not cut off, since some tokenizers strip
            the space there or treat what follows as the start of a text.
    """
    return [
        i
        for i, character in enumerate(text)
        if character == " "
        and (not text[i - 1].isspace() if i else after_title)
        and not text.endswith(special, 0, i)
    ]
