"""Writes a folder with a model of the BERT family with 12 layers of width 768 and random weights, always the same, which
reads texts as another model does.

    wide_model.py MODEL FOLDER
"""

import json
import pathlib
import shutil
import sys

import torch
from transformers import BertConfig, BertModel

model, folder = map(pathlib.Path, sys.argv[1:])
shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
torch.manual_seed(768)
BertModel(BertConfig(), add_pooling_layer=False).save_pretrained(folder)
pooling = folder / "1_Pooling/config.json"
pooling.write_text(json.dumps({**json.loads(pooling.read_text()), "word_embedding_dimension": 768}))
