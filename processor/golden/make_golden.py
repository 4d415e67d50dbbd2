#!/usr/bin/env python3
"""Makes the golden files that the model's tests hold the encoder to, with the reference implementation.

    pip install sentence-transformers
    python processor/golden/make_golden.py [FOLDER OF all-MiniLM-L6-v2]

demo.f32    vectors of every text of tributary/demo/jobs.jsonl by all-MiniLM-L6-v2: little-endian float32, row by row
demo.json   which texts those were, how many tokens each had, and the versions that answered
<name>/     small models with random weights, saved by the reference, and reference.json: its answers

A text of the demo is any line that is a JSON object with a string `input` of valid Unicode that is not blank. Run it
again when those lines change. The small models keep their weights where they exist already; delete a folder to draw new ones.
"""

import hashlib
import json
import os
import pathlib
import sys

import numpy
import sentence_transformers
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
VERSIONS = {
    "sentence_transformers": sentence_transformers.__version__,
    "transformers": transformers.__version__,
    "tokenizers": tokenizers.__version__,
    "torch": torch.__version__.split("+")[0],
}

TEXTS = [
    "The delivery was late.",
    "the delivery was late",
    "Crème brûlée, naïve café!",
    "",
    "   \t\n ",
    "a",
    "unaffordable unaffordability, re-delivered",
    "The pump station on the river needs a new valve before winter; the old one leaks and the meter is wrong.",
    "Ω ≈ 3.14159 — 漢字 and emoji 🚰 are read one by one",
    "x" * 150,
    "water " * 90,
    "line one\nline two\ttabbed\0nul\u200bzero width",
    "[MASK] is a word of the text, [SEP] too",
    "1234567890 12.5 % of 7,000 l",
]

SMALL = {
    # As today's sentence-transformers saves it: cls pooling, normalised.
    "cls": dict(hidden_size=40, num_hidden_layers=2, num_attention_heads=5, intermediate_size=64, hidden_act="gelu"),
    # As old releases saved it: flags for the pooling, names with a prefix; mean pooling, not normalised.
    "mean": dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=56, hidden_act="gelu_new"),
    # Two poolings side by side, a window of its own, weights in half precision.
    "max": dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=1, intermediate_size=64, hidden_act="relu"),
    # A bare transformers folder, which sentence-transformers reads as mean pooling; we normalise too.
    "bare": dict(hidden_size=36, num_hidden_layers=3, num_attention_heads=9, intermediate_size=40, hidden_act="gelu"),
}

# What modules.json calls the modules.
TODAY = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
}
FORMERLY = {kind: f"sentence_transformers.models.{kind}" for kind in ["Transformer", "Pooling", "Normalize"]}

FLAGS = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens"]


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else ROOT / ".cache/models/all-MiniLM-L6-v2"
    for name, shape in SMALL.items():
        if not (HERE / name).exists():
            draw(name, shape)
        answer(name)
    demo(folder)


def demo(folder):
    texts = demo_texts()
    model = SentenceTransformer(str(folder), device="cpu")
    vectors = model.encode(texts, batch_size=16, convert_to_numpy=True).astype("<f4")
    (HERE / "demo.f32").write_bytes(vectors.tobytes())
    write_json(HERE / "demo.json", {
        **VERSIONS,
        "texts_sha256": hashlib.sha256("\0".join(texts).encode()).hexdigest(),
        "dimension": vectors.shape[1],
        "tokens": tokens(model, texts),
    })
    print(f"demo: {len(texts)} texts, {vectors.nbytes} bytes")


def demo_texts():
    texts = []
    for line in (ROOT / "tributary/demo/jobs.jsonl").read_bytes().split(b"\n"):
        try:
            text = json.loads(line)["input"]
            text.encode()
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        if text.strip():
            texts.append(text)
    return texts


def tokens(model, texts):
    return [int(model.tokenize([text])["input_ids"].shape[1]) for text in texts]


def answer(name):
    folder = HERE / name
    model = SentenceTransformer(str(folder), device="cpu")
    vectors = model.encode(TEXTS, batch_size=1, convert_to_numpy=True, normalize_embeddings=name == "bare")
    rows = [
        {"text": text, "tokens": count, "vector": [round(float(x), 7) for x in vector]}
        for text, count, vector in zip(TEXTS, tokens(model, TEXTS), vectors)
    ]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "reference.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{name}: {sum(f.stat().st_size for f in folder.rglob('*') if f.is_file())} bytes")


def draw(name, shape):
    """A model with random weights large enough that every part of it shows in the answer."""
    folder = HERE / name
    tokenizer = small_tokenizer()
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=48, initializer_range=0.25, **shape)
    torch.manual_seed(len(name) + shape["hidden_size"])
    bert = BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for key, weight in bert.named_parameters():
            if key.endswith("bias"):
                weight.normal_(0, 0.2)
            elif "LayerNorm" in key:
                weight.normal_(1, 0.2)
    bert.save_pretrained(folder)
    tokenizer.model_max_length = 40 if name == "bare" else 48
    tokenizer.save_pretrained(folder)
    os.remove(folder / "tokenizer_config.json")
    if name == "cls":
        modules(folder, TODAY, {"pooling_mode": "cls"}, True)
    if name == "mean":
        modules(folder, FORMERLY, flags("mean_tokens"), False)
        prefixed = {f"bert.{key}": weight for key, weight in load_file(folder / "model.safetensors").items()}
        save_file(prefixed, folder / "model.safetensors", metadata={"format": "pt"})
    if name == "max":
        modules(folder, FORMERLY, flags("max_tokens", "mean_sqrt_len_tokens"), False)
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": 24, "do_lower_case": True})
        half = {key: weight.half() for key, weight in load_file(folder / "model.safetensors").items()}
        save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    if name == "bare":
        write_json(folder / "tokenizer_config.json", {"model_max_length": 40, "tokenizer_class": "BertTokenizer"})


def modules(folder, types, pooling, normalise):
    kinds = ["Transformer", "Pooling"] + ["Normalize"] * normalise
    write_json(folder / "modules.json", [
        {"idx": i, "name": str(i), "path": "" if i == 0 else f"{i}_{kind}", "type": types[kind]}
        for i, kind in enumerate(kinds)
    ])
    (folder / "1_Pooling").mkdir()
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": width, **pooling})


def flags(*on):
    return {f"pooling_mode_{flag}": flag in on for flag in FLAGS}


def small_tokenizer():
    letters = [chr(c) for c in range(ord("!"), ord("~") + 1) if not chr(c).isupper()]
    words = "the delivery was late water pump river valve and is line one two word of text re un able winter".split()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + letters + words
    vocabulary += [f"##{piece}" for piece in letters if piece.isalnum()] + ["##ford", "##able", "##ed", "##s"]
    ids = {piece: i for i, piece in enumerate(dict.fromkeys(vocabulary))}
    fast = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
    fast.normalizer = tokenizers.normalizers.BertNormalizer()
    fast.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    fast.post_processor = tokenizers.processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
