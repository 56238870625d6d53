"""Convert a checkpoint to GGUF in 32 bits: python gguf_convert.py LLAMA_CPP FOLDER FILE.gguf, in llama's environment.

llama.cpp's own convert_hf_to_gguf.py knows a tokenizer by a hash. It stops at one that it does not know, such as the
demo's, which splits text as that of gpt-2 does.
"""

import importlib
import os
import runpy
import sys

llama_cpp, folder, file = sys.argv[1:]
sys.path[:0] = [llama_cpp, os.path.join(llama_cpp, "gguf-py")]

base = importlib.import_module("conversion.base")
known = base.TextModel.get_vocab_base_pre


def get_vocab_base_pre(self, tokenizer):
    try:
        return known(self, tokenizer)
    except NotImplementedError:
        return "gpt-2"


base.TextModel.get_vocab_base_pre = get_vocab_base_pre
sys.argv = ["convert_hf_to_gguf.py", folder, "--outfile", file, "--outtype", "f32"]
runpy.run_path(os.path.join(llama_cpp, "convert_hf_to_gguf.py"), run_name="__main__")
