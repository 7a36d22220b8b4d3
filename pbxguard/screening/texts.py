"""What a pack says in words (labels.toml): texts of reasons and labels, and the notice that the law asks for.

Knows which texts there must be. Does not know who reads them, or how they are spoken (``prompts``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pbxguard.screening.tables import Toml

GROUPS = ("not_opted_in", "own_block", "system", "withheld", "failed", "pass")
"""The treatment groups of a reason (DESIGN section 3)."""


@dataclass(frozen=True, slots=True)
class Notice:
    """What a refused caller is told: the reason, the remedy, and the papers to bring.

    Anti-Telecom and Online Fraud Law Art. 32 asks for the three with every restriction.
    """

    reason: str
    remedy: str
    papers: str


@dataclass(frozen=True, slots=True)
class Text:
    """One reason or label in every language of the pack; notices only for reasons that refuse."""

    group: str
    by_language: Mapping[str, str]
    notices: Mapping[str, Notice]

    def text(self, language: str) -> str:
        """In that language, else in English."""
        return self.by_language.get(language) or self.by_language["en"]

    def notice(self, language: str) -> Notice | None:
        """In that language, else in English; None where the reason refuses nothing."""
        return self.notices.get(language) or self.notices.get("en")


def read_texts(toml: Toml, languages: tuple[str, ...]) -> tuple[dict[str, Text], dict[str, Text]]:
    """Texts of the reasons and of the labels, by name, each in every language of the pack and no other.

    Raises:
        BadPack: With file and line, for a text that is missing, or a refusing reason without its notice.
    """
    toml.only((), {"reason", "label"})
    reasons: dict[str, Text] = {}
    for name in toml.table(("reason",)):
        path = ("reason", name)
        group = toml.string(path, "group", "|".join(GROUPS))
        notices = {} if group == "pass" else _notices(toml, path, languages)
        by_language = _by_language(toml, path, languages, {"group"} if group == "pass" else {"group", "notice"})
        reasons[name] = Text(group, by_language, MappingProxyType(notices))
    labels = {
        name: Text("", _by_language(toml, ("label", name), languages, set()), MappingProxyType({}))
        for name in toml.table(("label",))
    }
    return reasons, labels


def _by_language(
    toml: Toml, path: tuple[str, ...], languages: tuple[str, ...], others: set[str]
) -> Mapping[str, str]:
    toml.only(path, others | set(languages))
    return MappingProxyType({language: toml.string(path, language, ".+") for language in languages})


def _notices(toml: Toml, path: tuple[str, ...], languages: tuple[str, ...]) -> dict[str, Notice]:
    toml.only((*path, "notice"), set(languages))
    return {language: _notice(toml, (*path, "notice", language)) for language in languages}


def _notice(toml: Toml, path: tuple[str, ...]) -> Notice:
    toml.only(path, {"reason", "remedy", "papers"})
    return Notice(*(toml.string(path, key, ".+") for key in ("reason", "remedy", "papers")))
