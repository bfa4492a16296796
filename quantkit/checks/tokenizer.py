"""Whether the engine cuts text into the tokens that the checkpoint's own tokenizer gives, with the vocabulary in the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from quantkit.values import CheckResult

Tokenize = Callable[[str], Sequence[int]]

TEXTS = (
    "The quick brown fox jumps over the lazy dog. It isn't 42 or 1,234.5; they've said WE'LL see, I'd guess.",
    "def f(x):\n    return {'a': x[0], \"b\": x**2}  # comment\n\n\tif x != 3:\n\t\tprint('No!!!', x)\n\n\n",
    "  two leading spaces, three   inside, trailing ones   ",
    "1 12 123 1234 12345678 3.14159 0x1F 1e-9 10% $5 #7 2026-11-25",
    "Привет, мир! Ёлка. Καλημέρα κόσμε. naïve café, São Tomé, Straße, œuvre",
    "你好，世界。今天天气很好！ こんにちは世界、カタカナ。 안녕하세요 세계",
    "مرحبا بالعالم שלום עולם नमस्ते दुनिया สวัสดีชาวโลก",
    "🙂🚀👩‍👩‍👧‍👦 ½ ² ① Ⅳ ™ – — … “quoted” ‘single’",
    "SELECT name, count(*) FROM users WHERE age >= 18 GROUP BY name; -- <b>&amp;</b> http://a.b/c?d=e&f=g",
    "A<|not_special|>B [INST] <s> </s> <unk> <0x0A> ##word ▁piece Ġpiece",
)


def check(expected: Tokenize, found: Tokenize, engine: str, known: str | None = None) -> CheckResult:
    """Compare ids text by text. expected: by the checkpoint's tokenizer; found: by the engine, from the file.

    known: why the engine is known to cut some texts otherwise, whatever file it is given: then a difference is reported and
    fails nothing. Both without the tokens that a text begins or ends with; names of special tokens are ordinary text.
    """
    different = []
    tokens = 0
    for text in TEXTS:
        wanted, got = list(expected(text)), list(found(text))
        tokens += len(wanted)
        if wanted != got:
            at = next((i for i, (a, b) in enumerate(zip(wanted, got, strict=False)) if a != b), min(len(wanted), len(got)))
            different.append(f"{text[:24]!r} at token {at}: {wanted[at : at + 3]} by the tokenizer, {got[at : at + 3]} here")
    good = f"{len(TEXTS)} texts, {tokens} tokens, the same ids as the checkpoint's tokenizer gives"
    bad = f"{len(different)} of {len(TEXTS)} texts are cut otherwise: {''.join(different[:1])}"
    return CheckResult(
        check="tokenizer",
        verdict="pass" if not different else "report" if known else "fail",
        summary=good if not different else f"{bad} ({known})" if known else bad,
        values={"texts": len(TEXTS), "tokens": tokens, "different": len(different)},
        limits={},
        engine=engine,
    )
