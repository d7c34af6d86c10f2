"""Kinds of tokenizers and of chat templates, built here: what a user's own may be like.

A template comes with a function of its own that says, without the template, which pieces a chat is written in and
which of them the assistant says: by that the spans that AutoLR finds are judged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

Message = dict[str, Any]
Piece = tuple[str, bool]

WORDS = [
    "the answer is good and the question was long: who says yes, no or maybe? <think> hm </think> user assistant",
    "Café naïve 12345 {'a': 1} [x] ### Response tool call yes nice word words system model hello world",
]
END, START, EOS = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
SPECIAL = [
    EOS,
    START,
    END,
    "<|eot_id|>",
    "<|user|>",
    "<|assistant|>",
    "<s>",
    "</s>",
    "[gMASK]",
    "<sop>",
    "<think>",
    "</think>",
]


def _special(**more: Any) -> dict[str, Any]:
    return {"special_tokens": [*more.pop("first", []), *SPECIAL], "show_progress": False, **more}


def _bpe(prefix: list[str], suffix: list[str], normalizer: Any = None, trim: bool = True) -> Tokenizer:
    """Bytes' BPE, as GPT-2, Llama 3, Qwen and GLM have it."""
    built = Tokenizer(models.BPE())
    built.normalizer = normalizer
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim)
    built.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    built.train_from_iterator(WORDS, trainers.BpeTrainer(**_special(vocab_size=500, initial_alphabet=alphabet)))
    _surround(built, prefix, suffix)
    return built


def _surround(built: Tokenizer, prefix: list[str], suffix: list[str]) -> None:
    if prefix or suffix:
        ids = [(token, built.token_to_id(token)) for token in {*prefix, *suffix}]
        built.post_processor = processors.TemplateProcessing(single=[*prefix, "$A", *suffix], special_tokens=ids)


def _unigram(scheme: str, prefix: list[str]) -> Tokenizer:
    """SentencePiece's unigrams; `always` is the legacy way, which puts a space behind each special token."""
    built = Tokenizer(models.Unigram())
    built.normalizer = normalizers.NFKC()
    built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    built.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(**_special(first=["<unk>"], unk_token="<unk>", vocab_size=200))
    built.train_from_iterator(WORDS * 3, trainer)
    _surround(built, prefix, [])
    return built


def _fallback() -> Tokenizer:
    """BPE that writes unknown characters in bytes, as Llama 2 has it."""
    built = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    built.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    built.train_from_iterator(WORDS, trainers.BpeTrainer(**_special(first=["<unk>", *bytes_], vocab_size=700)))
    built.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    _surround(built, ["<s>"], [])
    return built


def _wordpiece() -> Tokenizer:
    built = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    built.normalizer = normalizers.BertNormalizer(lowercase=True)
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(**_special(first=["[UNK]", "[CLS]", "[SEP]"], vocab_size=300))
    built.train_from_iterator(WORDS, trainer)
    _surround(built, ["[CLS]"], ["[SEP]"])
    return built


def _fast(built: Tokenizer, eos: str = END, pad: str = EOS, **more: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=built, eos_token=eos, pad_token=pad, **more)


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "bytes": lambda: _fast(_bpe([], [])),
    "bytes, pad is eos": lambda: _fast(_bpe([], []), pad=END),
    "bytes, bos": lambda: _fast(_bpe(["<s>"], []), bos_token="<s>"),
    "bytes, prefix that is no bos": lambda: _fast(_bpe(["[gMASK]", "<sop>"], []), padding_side="left"),
    "bytes, bos and eos added": lambda: _fast(_bpe(["<s>"], [END], trim=False), bos_token="<s>"),
    "bytes, NFC": lambda: _fast(_bpe([], [], normalizers.NFC()), truncation_side="left"),
    "bytes, NFD": lambda: _fast(_bpe([], [], normalizers.NFD())),
    "unigrams": lambda: _fast(_unigram("first", ["<s>"]), bos_token="<s>", unk_token="<unk>"),
    "unigrams, legacy": lambda: _fast(_unigram("always", []), unk_token="<unk>"),
    "unigrams, no prefix space": lambda: _fast(_unigram("never", []), unk_token="<unk>"),
    "byte fallback": lambda: _fast(_fallback(), bos_token="<s>", unk_token="<unk>"),
    "word pieces": lambda: _fast(_wordpiece(), unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"),
    "Python, without offsets": lambda: ByT5Tokenizer(
        eos_token=END,
        pad_token=EOS,
        extra_ids=0,
        additional_special_tokens=[token for token in SPECIAL if token not in (END, EOS)],
    ),
}


@dataclass(frozen=True)
class Template:
    """A chat template.

    Attributes:
        jinja: the template.
        pieces: says what it writes of a chat, without it.
    """

    jinja: str
    pieces: Callable[[list[Message]], list[Piece]]


_HEAD = "<|im_start|>{{ m.role }}\n"
_ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = "{% for m in messages %}" + _HEAD + "{{ m.content }}<|im_end|>\n{% endfor %}" + _ASK
MARKED = (
    "{% for m in messages %}" + _HEAD + "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>"
    "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}" + _ASK
)
SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}" + CHATML
# The next two write other answers than they ask for: R1's kind, and Qwen 3's, which forgets earlier reasoning.
R1 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "<|assistant|>{{ m.content.split('</think>')[-1] }}<|im_end|>"
    "{% else %}<|user|>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
FORGETS = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}" + _HEAD + "{% if m.role == 'assistant' %}"
    "{% set parts = m.content.split('</think>') %}"
    "{% set thought = parts[0].split('<think>')[-1].strip() if parts|length > 1 else '' %}"
    "{% if loop.index0 > ns.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ parts[-1].lstrip('\n') }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}" + _ASK
)
LLAMA = (
    "{% for m in messages %}{% if loop.first %}<s>{% endif %}<|user|>{{ m.role }}<|assistant|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant<|assistant|>\n\n{% endif %}"
)
GEMMA = (
    "<s>{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
# No token of its own ends the words of the user here, and none begins the answer.
INST = (
    "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}<|im_end|>"
    "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
)
# Nothing but words, as Alpaca has it.
WORDS_ALONE = (
    "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}{% if m.role == 'assistant' %}<|im_end|>{% endif %}"
    "{{ '\n\n' }}"
    "{% endfor %}{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
TWO_ENDS = "{% for m in messages %}" + _HEAD + "{{ m.content }}<|eot_id|><|im_end|>\n{% endfor %}" + _ASK
# A system prompt becomes a part of the first question, as Mistral has it.
INSIDE = (
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}<s>{% for m in rest %}"
    "{% if m.role == 'assistant' %}<|assistant|>{{ m.content }}</s>{% else %}<|user|>"
    "{{ first if loop.first else '' }}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PARTS = (
    "{% for m in messages %}"
    + _HEAD
    + "{% for part in m.content %}{{ part.text }}{% endfor %}<|im_end|>\n{% endfor %}"
    + _ASK
)


def _wrapped(
    head: Callable[[Message], str], said: Callable[[Message], str], end: str, behind: str
) -> Callable[[list[Message]], list[Piece]]:
    def pieces(chat: list[Message]) -> list[Piece]:
        found = []
        for message in chat:
            own = message["role"] == "assistant"
            found += [(head(message), False), (said(message) + end, own), (behind, False)]
        return found

    return pieces


def _plain(message: Message) -> str:
    return str(message["content"])


def _chatml(message: Message) -> str:
    return f"<|im_start|>{message['role']}\n"


def _system(chat: list[Message]) -> list[Piece]:
    first = [] if chat[0]["role"] == "system" else [("<|im_start|>system\nBe good.<|im_end|>\n", False)]
    return [*first, *_wrapped(_chatml, _plain, END, "\n")(chat)]


def _r1(chat: list[Message]) -> list[Piece]:
    found: list[Piece] = []
    for message in chat:
        if message["role"] == "assistant":
            found += [("<|assistant|>", False), (_plain(message).split("</think>")[-1] + END, True)]
        else:
            found.append((f"<|user|>{message['content']}", False))
    return found


def _forgets(chat: list[Message]) -> list[Piece]:
    last = max((at for at, message in enumerate(chat) if message["role"] == "user"), default=-1)
    found: list[Piece] = []
    for at, message in enumerate(chat):
        said = _plain(message)
        if message["role"] == "assistant":
            *thoughts, answer = said.split("</think>")
            thought = thoughts[0].split("<think>")[-1].strip() if thoughts else ""
            said = (f"<think>\n{thought}\n</think>\n\n" if at > last else "") + answer.lstrip("\n")
        found += [(_chatml(message), False), (said + END, message["role"] == "assistant"), ("\n", False)]
    return found


def _llama(chat: list[Message]) -> list[Piece]:
    found = _wrapped(
        lambda m: f"<|user|>{m['role']}<|assistant|>\n\n", lambda m: _plain(m).strip(), "<|eot_id|>", ""
    )(chat)
    return [("<s>", False), *found]


def _gemma(chat: list[Message]) -> list[Piece]:
    role = {"assistant": "model"}
    found = _wrapped(
        lambda m: f"<|im_start|>{role.get(m['role'], m['role'])}\n", lambda m: _plain(m).strip(), END, "\n"
    )(chat)
    return [("<s>", False), *found]


def _inst(chat: list[Message]) -> list[Piece]:
    found: list[Piece] = []
    for message in chat:
        own = message["role"] == "assistant"
        said = _plain(message)
        found += [(" ", False), (said + END, True)] if own else [(f"[INST] {said} [/INST]", False)]
    return found


def _words_alone(chat: list[Message]) -> list[Piece]:
    found: list[Piece] = []
    for message in chat:
        own = message["role"] == "assistant"
        found += [
            (f"### {message['role']}:\n", False),
            (_plain(message) + (END if own else ""), own),
            ("\n\n", False),
        ]
    return found


def _inside(chat: list[Message]) -> list[Piece]:
    first = _plain(chat[0]) + "\n\n" if chat[0]["role"] == "system" else ""
    found: list[Piece] = [("<s>", False)]
    for at, message in enumerate(chat[1:] if first else chat):
        if message["role"] == "assistant":
            found += [("<|assistant|>", False), (_plain(message) + "</s>", True)]
        else:
            found.append((f"<|user|>{'' if at else first}{message['content']}", False))
    return found


TEMPLATES: dict[str, Template] = {
    "chatml": Template(CHATML, _wrapped(_chatml, _plain, END, "\n")),
    "chatml, marked": Template(MARKED, _wrapped(_chatml, _plain, END, "\n")),
    "chatml, system prompt of its own": Template(SYSTEM, _system),
    "chatml, parts": Template(PARTS, _wrapped(_chatml, _plain, END, "\n")),
    "asks with <think>": Template(R1, _r1),
    "forgets reasoning": Template(FORGETS, _forgets),
    "trims, another end token": Template(LLAMA, _llama),
    "roles must alternate": Template(GEMMA, _gemma),
    "words alone": Template(WORDS_ALONE, _words_alone),
    "two end tokens": Template(TWO_ENDS, _wrapped(_chatml, _plain, "<|eot_id|>" + END, "\n")),
    "system prompt inside": Template(INSIDE, _inside),
    "asks with nothing": Template(INST, _inst),
}


# Templates in which a token may reach across the beginning of an answer.
OPEN = ("words alone", "asks with nothing")


def said(tokenizer: Any, text: str) -> str:
    """Return a text as far as a tokenizer keeps it."""
    return shown(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])


def shown(tokenizer: Any, ids: list[int]) -> str:
    """Return the text of ids, with all its spaces."""
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def squeezed(text: str) -> str:
    """Return a text without spaces, which some tokenizers add or drop at an end."""
    return "".join(text.split())


def is_right(tokenizer: Any, name: str, chat: list[Message], ids: list[int], labels: list[int]) -> bool:
    """Return True if ids and labels are those of a chat.

    Args:
        tokenizer: of any kind.
        name: of its template.
        chat: plain messages.
        ids: of the chat, up to what is learned last.
        labels: the ids that are learned, -100 at the others.
    """
    pieces = TEMPLATES[name].pieces(chat)
    whole = tokenizer("".join(piece for piece, _ in pieces), add_special_tokens=False)["input_ids"]
    if ids != whole[: len(ids)] or any(label not in (-100, token) for token, label in zip(ids, labels, strict=True)):
        return False
    wanted = [said(tokenizer, piece) for piece, is_said in pieces if is_said]
    given = [shown(tokenizer, run) for run in runs(labels)]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if name not in OPEN and backend is not None and isinstance(backend.decoder, decoders.ByteLevel):
        return given == wanted
    return squeezed("".join(given)) == squeezed("".join(wanted))


def runs(labels: list[int]) -> list[list[int]]:
    """Return the learned ids, run by run."""
    return [list(run) for is_learned, run in groupby(labels, lambda label: label != -100) if is_learned]
