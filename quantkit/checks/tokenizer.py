"""The vocabulary in an artefact against the checkpoint's: the same ids for the same text, and the text back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from quantkit.errors import UnresolvedError
from quantkit.values import CheckResult, Tokenizer

ADDED_TOKENS = 24  # of them at most, spread evenly over their list

# Kind -> texts, in NFC, which llama.cpp expects. A kind with a name is one that some of llama.cpp's tokenizers are known
# to treat in a way of their own; those without one are for everybody.
SAMPLES: Mapping[str, tuple[str, ...]] = {
    "": (
        "The quick brown fox jumps over the lazy dog; isn't it what they're for? We'll see, I'd say. You've DON'T'S.",
        "def main(args: list[str]) -> int:\n    for i, x in enumerate(args):\n\t\tprint(f'{i}: {x!r}')  # why\n    return 0",
        "#include <stdio.h>\nint main(void) { return a->b != c[3] && x++ <= ~y ? 1 : 0; } /* end */",
        '{"key": [1, 2.5, -3e8, null, true], "__name__": "C:\\\\path\\\\to", "html": "<a href=\'/x?y=1&z\'>&amp;</a>"}',
        "SELECT name, COUNT(*) FROM users WHERE id >= 10 GROUP BY name HAVING COUNT(*) > 1;",
        "0 1 12 123 1234 12345 123456 1234567 3.14159 1,000,000 2024-02-29 12:34:56 100% $5.00 €20 №7 ½ ² ⅷ",
        "one\ntwo\n\nthree\n\n\nfour \n five\nsix\t\tseven",
        "a  b   c    d        e\tf\t\tg",
        "Ça déjà vu, naïve façade; Übergröße, Mädchen; señor ¿qué tal? ¡olé! Žluťoučký kůň; Łódź; İstanbul",
        "Быстрая лиса прыгает через ленивую собаку. Ёлка, объём, Київ, їжак; Η γρήγορη αλεπού πηδά.",
        "敏捷的棕色狐狸跳过了懒狗。我想在apple工作1314151天～「引用」、《书》！",
        "素早い茶色の狐はのろまな犬を飛び越える。カタカナ、ひらがな、漢字、ﾊﾝｶｸ、ＦＵＬＬ",
        "الثعلب البني السريع يقفز فوق الكلب الكسول، أليس كذلك؟ שועל מהיר קופץ מעל הכלב.",
        "!!! ??? ... --- ___ *** ### ~~~ === <<>> (()) [[]] {{}} \"\" '' `` // \\\\ || && @@ ^^ ::",
        "<|not_a_token|> <|im_sta <s > [ INST] </ s> <mask_ [UNKNOWN] <0x4G> <extra_id_ ## Ġ",
        "https://example.org/a/b.html?q=%20&r=1#top user.name+tag@example.com ~/dir/*.tar.gz v1.2.3-rc4",
        "x = α + β·γ ≤ ∑∞ → ∂f/∂x ≈ 3 × 10⁻⁸ µm ± 5 °C © ™ “quoted” ‘single’ – en — em … • ▪",
    ),
    "edges": (" one space before", "  two spaces before", "one space after ", "two after  ", "\n", " ", "\n\nlines around\n"),
    "crlf": ("one\r\ntwo\r\n\r\nthree \r\n four",),
    "rare": ("🙂 🚀🚀 👩‍💻 🇫🇷 👍🏽 ❤️ 🦙x", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𓀀 ꙮ ᚠᛇᚻ ⠓⠑⠇⠇⠕ ꧁꧂"),
    "marks": ("तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है।", "สุนัขจิ้งจอกสีน้ำตาลกระโดดข้าม កាន់តែពិសេស বাংলা தமிழ்"),
    "hangul": ("빠른 갈색 여우가 게으른 개를 뛰어넘는다. 한국어와 English를 섞어 쓴다.",),
    "case": ("ПРИвет ёлкаБеС ΑλΦα ÉcOLE garçON", "straßeÉ ÀÉÎõü мОСКВа"),
    "camel": ("camelCase PascalCase HTTPServer iPhone getURLById XMLHttpRequest McDonald",),
    "digits": ("x1234567y 12345abc v10000000beta 1234px    12",),
}


class Vocabulary(Protocol):
    """An artefact's vocabulary, opened in its engine."""

    @property
    def engine(self) -> str: ...

    @property
    def size(self) -> int: ...

    def tokenise(self, text: str, *, ends: bool = False) -> list[int]:
        """Special tokens in the text are parsed; with `ends`, what begins and ends a text is added."""
        ...

    def text(self, tokens: Sequence[int]) -> str:
        """The tokens' texts, one after the other, special ones too."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Difference:
    kind: str
    text: str
    ours: object
    theirs: object


def check(
    tokenizer: Tokenizer, open_vocabulary: Callable[[], Vocabulary], *, known: Mapping[str, str] | None = None
) -> CheckResult:
    """Every sample and a choice of the added tokens: ids by the tokenizers library on the checkpoint's definition and by the
    engine on the artefact. One difference fails, unless its kind is `known` (gguf_vocab.deviations): then it is told.

    Unresolved where `open_vocabulary` raises UnresolvedError: there is no engine.
    """
    try:
        vocabulary = open_vocabulary()
    except UnresolvedError as error:
        return CheckResult("tokenizer", "unresolved", str(error), {}, {}, "")
    try:
        return _compare(tokenizer, vocabulary, known or {})
    finally:
        vocabulary.close()


def _compare(tokenizer: Tokenizer, vocabulary: Vocabulary, known: Mapping[str, str]) -> CheckResult:
    from tokenizers import Tokenizer as Engine

    definition = tokenizer.definition
    engine = Engine.from_str(json.dumps({**definition, "truncation": None, "padding": None}))
    texts = [*_samples(), *_added(definition, vocabulary.size)]
    found, count = [], 0
    for kind, text in texts:
        ids = engine.encode(text, add_special_tokens=False).ids
        count += len(ids)
        if (theirs := vocabulary.tokenise(text)) != ids:
            found.append(_Difference(kind, text, *_split(ids, theirs)))
        elif (pair := _back(definition, engine, vocabulary, text, ids)) is not None:
            found.append(_Difference(kind, text, *pair))
    if not {"add_bos_token", "add_eos_token"} & tokenizer.config.keys():  # settings may say otherwise than the definition
        ours, theirs = engine.encode("text").ids, vocabulary.tokenise("text", ends=True)
        found += [_Difference("ends", "text", ours, theirs)] if ours != theirs else []
    found += _entries(definition, vocabulary)
    faults = [each for each in found if each.kind not in known]
    left = [added["content"] for added in definition.get("added_tokens", ()) if added["id"] >= vocabulary.size]
    values = {
        "texts": len(texts), "tokens": count, "mismatches": len(faults), "known_differences": len(found) - len(faults),
        "tokens_left_out": len(left),
    }  # fmt: skip
    notes = [_fault(faults, len(texts))] if faults else [f"{count} tokens of {len(texts)} texts as in tokenizer.json"]
    for kind in sorted({each.kind for each in found} & known.keys()):
        notes.append(f"{kind}: {sum(each.kind == kind for each in found)} differ for every converter, {known[kind]}")
    if left:
        notes.append(f"without a row in the embedding and left out: {', '.join(left[:3])}{' ...' if left[3:] else ''}")
    summary = "; ".join(notes)
    return CheckResult("tokenizer", "fail" if faults else "pass", summary, values, {"mismatches": 0}, vocabulary.engine)


def _entries(definition: Mapping[str, Any], vocabulary: Vocabulary) -> Iterator[_Difference]:
    """Entries of a byte-level vocabulary that are another text in the artefact: samples meet few of them."""
    if (definition.get("decoder") or {}).get("type") != "ByteLevel":
        return
    letters = {letter: byte for byte, letter in enumerate(_byte_letters())}
    apart = {added["id"] for added in definition.get("added_tokens", ())}
    for token, number in (definition["model"].get("vocab") or {}).items():
        if number in apart or number >= vocabulary.size or not all(letter in letters for letter in token):
            continue
        ours, theirs = bytes(letters[letter] for letter in token).decode("utf-8", "replace"), vocabulary.text([number])
        if ours != theirs:
            yield _Difference("entries", token, ours, theirs)


def _byte_letters() -> list[str]:
    """GPT-2's letter for every byte: itself where it prints, else one from 256 on."""
    printed = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printed else chr(next(others)) for byte in range(256)]


def _samples() -> Iterator[tuple[str, str]]:
    return ((kind, text) for kind, texts in SAMPLES.items() for text in texts)


def _added(definition: Mapping[str, Any], size: int) -> Iterator[tuple[str, str]]:
    """Texts with added tokens inside. Some tokens are looked for in normalised text, some take the spaces beside them: what
    they do is of a kind of its own.
    """
    changed = definition.get("normalizer") not in (None, {"type": "NFC"})
    fit = [each for each in definition.get("added_tokens", ()) if each["id"] < size and not each.get("single_word")]
    for each in fit[:: max(1, -(-len(fit) // ADDED_TOKENS))]:
        token = each["content"]
        kind = "normalized" if changed and each.get("normalized") else ""
        strips = each.get("lstrip") or each.get("rstrip")
        yield kind, f"word{token}"
        yield kind or "added", f"{token}word{token}{token}2"
        yield kind or ("strips" if strips else "added"), f"{token} word {token} word"


def _split(ours: Sequence[int], theirs: Sequence[int]) -> tuple[list[int], list[int]]:
    """Both from where they part, a few ids of each."""
    parted = (n for n, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other)
    same = next(parted, min(len(ours), len(theirs)))
    return list(ours[same : same + 6]), list(theirs[same : same + 6])


def _back(
    definition: Mapping[str, Any], engine: Any, vocabulary: Vocabulary, text: str, ids: Sequence[int]
) -> tuple[str, str] | None:
    """What comes back from both, where the artefact's is neither the text nor what the definition makes of it; a space that
    SentencePiece put before it does not count.

    WordPiece's text does not come back: the engines guess its spaces, each in its way.
    """
    if definition["model"].get("type") == "WordPiece":
        return None
    theirs = vocabulary.text(ids)
    byte_level = (definition.get("decoder") or {}).get("type") == "ByteLevel"
    same = {theirs} if byte_level else {theirs, theirs.removeprefix(" ")}
    if text in same:
        return None
    ours = engine.decode(ids, skip_special_tokens=False)
    return None if ours in same else (ours, theirs)


def _fault(faults: Sequence[_Difference], texts: int) -> str:
    first = faults[0]
    return (
        f"{len(faults)} of {texts} texts differ, first {first.text[:60]!r}: "
        f"tokenizer.json has {first.ours!r}, the artefact {first.theirs!r}"
    )
