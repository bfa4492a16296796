"""The pre-tokenizers that llama.cpp knows by name, spelt as a tokenizer.json has them (llama.cpp's src/llama-vocab.cpp).

Definitions are those of the checkpoints that each name was made for; where llama.cpp's source quotes the original
expression, it is that one. `differs` says on which kinds of text llama.cpp's own expression is known to split otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Step = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pre:
    """`steps`: the pre_tokenizers of tokenizer.json in order. `also`: llama.cpp's other names for the same rules.

    `differs`: kind of sample text (checks/tokenizer.py has them) -> why llama.cpp's tokens are known to differ on it.
    """

    steps: tuple[Step, ...]
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False  # what llama.cpp does when tokenizer.ggml.add_bos_token is absent
    also: tuple[str, ...] = ()
    differs: Mapping[str, str] = field(default_factory=dict)


def split(regex: str) -> Step:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def byte_level(words: bool) -> Step:
    """To the byte alphabet; with `words`, GPT-2's own expression splits first."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": words}


def digits(individual: bool) -> Step:
    return {"type": "Digits", "individual_digits": individual}


def _splits(*regexes: str, words: bool = False) -> tuple[Step, ...]:
    return (*map(split, regexes), byte_level(words))


ANY_CASE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_HEAD = r"[^\r\n\p{L}\p{N}]?"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES
_LLAMA3 = ANY_CASE + f"|{_HEAD}" + r"\p{L}+|\p{N}{1,3}" + _REST
_QWEN2 = ANY_CASE + f"|{_HEAD}" + r"\p{L}+|\p{N}" + _REST
_QWEN35 = ANY_CASE + f"|{_HEAD}" + r"[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _SPACES
_UFAKZEKA = f"{_HEAD}" + r"\p{L}+|\p{N}" + _REST
_MINICPM5 = ANY_CASE + f"|{_HEAD}" + r"\p{L}+|\p{N}+" + _REST
_SEED = ANY_CASE + f"|{_HEAD}" + r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+" + _SPACES
_EXAONE_MOE = ANY_CASE + f"|{_HEAD}" + r"(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?" + _SPACES
_HALVED = "".join(rf"|\s{{{2**power}}}(?!\S)" for power in range(9, 1, -1))
_JAIS2 = ANY_CASE + f"|{_HEAD}" + r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+" + _HALVED + r"|\s{1,2}(?!\S)|\s{1}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = f"{_HEAD}{_UPPER}*{_LOWER}+|{_HEAD}{_UPPER}+{_LOWER}*" + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES
_GPT4O = (
    f"{_HEAD}{_UPPER}*{_LOWER}+{ANY_CASE}?|{_HEAD}{_UPPER}+{_LOWER}*{ANY_CASE}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES
)
_UPPER_HAN = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOWER_HAN = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_KIMI = (
    rf"[\p{{Han}}]+|{_HEAD}{_UPPER_HAN}*{_LOWER_HAN}+{ANY_CASE}?|{_HEAD}{_UPPER_HAN}+{_LOWER_HAN}*{ANY_CASE}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES
)
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*""" + _SPACES
)
_CJK = "[一-龥ࠀ-一가-퟿]+"
_LETTERS = (  # DeepSeek's own list of cased letters
    "[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώ"
    "ᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏"
    "𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"

_CASE = {"case": "llama.cpp's expression knows upper and lower case in ASCII alone"}
_MARKS = {"marks": "llama.cpp's expression takes combining marks for punctuation"}
_CAMEL = {"camel": "llama.cpp's expression knows no case"}
_DIGITS = {"digits": "llama.cpp groups digits from their end before letters too, and splits spaces before them"}

# Of several names with the same rules the first is written; only llama.cpp's detokenising tells them apart.
TABLE: Mapping[str, Pre] = {
    "gpt-2": Pre(
        _splits(words=True),
        also=("phi-2", "mpt", "olmo", "jais", "trillion", "gigachat", "mellum", "exaone4", "granite-docling", "modern-bert",
              "a.x-4.0", "roberta-bpe", "jina-v1-en", "jina-v2-code", "jina-v2-de", "jina-v2-es", "jina-de", "jina-es"),
    ),
    "smollm": Pre(
        (digits(True), byte_level(True)),
        also=("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
    ),
    "llama-bpe": Pre(
        _splits(_LLAMA3), ignore_merges=True, add_bos=True,
        also=("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "glm4", "glm5"),
    ),
    "smaug-bpe": Pre(_splits(_LLAMA3), also=("dbrx", "chatglm-bpe")),
    "qwen2": Pre(
        _splits(_QWEN2), nfc=True,
        also=("stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan", "kormo", "f2llmv2", "grok-2", "solar-open", "bailingmoe",
              "bailingmoe2", "llada-moe"),
    ),
    "qwen35": Pre(_splits(_QWEN35), nfc=True),
    "tekken": Pre(_splits(_TEKKEN), ignore_merges=True, add_bos=True, differs=_CASE | _MARKS),
    "gpt-4o": Pre(_splits(_GPT4O), also=("llama4", "kanana2", "talkie", "minimax-m2"), differs=_CASE | _MARKS),
    "deepseek-v3": Pre(
        _splits(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3), also=("hunyuan-dense", "joyai-llm", "hy_v4")
    ),
    "deepseek-llm": Pre(
        (*map(split, (r"[\r\n]", r"\s?" + _LETTERS, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _CJK)), digits(True),
         byte_level(False)),
    ),
    "deepseek-coder": Pre((*map(split, (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK)), digits(True), byte_level(False))),
    "falcon": Pre(
        ({"type": "Punctuation", "behavior": "Contiguous"}, byte_level(True), digits(False), split("[0-9][0-9][0-9]"))
    ),
    "bloom": Pre(_splits(_BLOOM), also=("poro-chat", "gpt3-finnish")),
    "viking": Pre((split(_BLOOM), digits(True), byte_level(False))),
    "jais-2": Pre(_splits(_JAIS2)),
    "seed-coder": Pre(_splits(_SEED)),
    "exaone-moe": Pre(_splits(_EXAONE_MOE)),
    "minicpm5": Pre(_splits(r"\p{N}{1,3}", _MINICPM5), ignore_merges=True),
    "superbpe": Pre(_splits(r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    "tiny_aya": Pre(
        _splits(r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O), also=("cohere2moe",), differs=_CASE | _MARKS | _CAMEL | _DIGITS
    ),
    "kimi-k2": Pre(_splits(_KIMI), differs=_CASE | _MARKS | _CAMEL),
    "ufakzeka": Pre(_splits(_UFAKZEKA)),
}  # fmt: skip
