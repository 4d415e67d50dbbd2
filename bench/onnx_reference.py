"""The same model in ONNX Runtime, on the texts of a file of jobs: exported on the first run into a folder, in `f32`, and
quantized there to `int8`, dynamically, as its documentation does it. Prints tokens and seconds as JSON.

    onnx_reference.py MODEL JOBS --out FOLDER [--dtype f32|int8] [--batch 32]
"""

import argparse
import json
import os
import pathlib
import time

import numpy
import onnxruntime
from transformers import AutoTokenizer

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("jobs")
parser.add_argument("--out", type=pathlib.Path, required=True)
parser.add_argument("--dtype", choices=["f32", "int8"], default="f32")
parser.add_argument("--batch", type=int, default=32)
args = parser.parse_args()


def exported(path):
    if not path.exists():
        import torch
        from transformers import AutoModel

        model = AutoModel.from_pretrained(args.model, attn_implementation="eager").eval()
        ids = torch.ones(2, 8, dtype=torch.long)
        names = ["input_ids", "attention_mask", "token_type_ids"]
        axes = dict.fromkeys(names, {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens", max=512)})
        torch.onnx.export(model, (ids, ids, 0 * ids), path, input_names=names, output_names=["hidden"], dynamic_shapes=axes, dynamo=True)
    return path


def quantized(path):
    if not path.exists():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(exported(args.out / "f32.onnx"), path, weight_type=QuantType.QInt8)
    return path


args.out.mkdir(parents=True, exist_ok=True)
path = exported(args.out / "f32.onnx") if args.dtype == "f32" else quantized(args.out / "int8.onnx")
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = len(os.sched_getaffinity(0))
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
tokenizer = AutoTokenizer.from_pretrained(args.model)
window = json.loads((pathlib.Path(args.model) / "sentence_bert_config.json").read_text())["max_seq_length"]
with open(args.jobs) as file:
    texts = [json.loads(line)["input"] for line in file]


def encode(texts):
    """As sentence-transformers does it: the longest first, in batches, padded to the longest of each; the mean of the
    tokens, of length one."""
    vectors = []
    texts = sorted(texts, key=len, reverse=True)
    for first in range(0, len(texts), args.batch):
        batch = texts[first : first + args.batch]
        inputs = dict(tokenizer(batch, padding=True, truncation=True, max_length=window, return_tensors="np"))
        mask = inputs["attention_mask"][..., None].astype(numpy.float32)
        hidden = session.run(["hidden"], inputs)[0]
        pooled = (hidden * mask).sum(axis=1) / mask.sum(axis=1)
        vectors.append(pooled / numpy.linalg.norm(pooled, axis=1, keepdims=True))
    return numpy.concatenate(vectors)


encode(texts[:64])
began = time.monotonic()
encode(texts)
seconds = time.monotonic() - began
tokens = sum(min(len(ids), window) for ids in tokenizer(texts)["input_ids"])
print(json.dumps({"tokens": tokens, "batch": args.batch, "seconds": seconds, "tokens_per_s": tokens / seconds}))
