"""What the scripts of all engines share: read what is asked, print a line of JSON for each folder.

A script is called with a JSON file: `prompts` (lists of tokens), `new` (tokens of a continuation), `folders`, and
`options` of its model. A line has `scores` of the prompts' tokens, and `continued` if the engine continues; or `error`.
"""

import gc
import json
import sys


def answer(computed):
    """Print what a function of a folder and of what is asked returns for every folder."""
    with open(sys.argv[1]) as file:
        asked = json.load(file)
    for folder in asked["folders"]:
        try:
            result = computed(folder, asked)
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        gc.collect()
        print(json.dumps(result), flush=True)
