"""Compression in memory, saving, and what both must have in common with the workflow."""

import json
from types import SimpleNamespace

import architectures
import numpy as np
import pytest
import torch
import transformers
from by_stages import by_workflow, drawn
from huggingface_hub import CommitOperationAdd, ModelCard, ModelCardData
from tiny_project import make_tiny
from transformers import AutoModelForCausalLM

import mergemoe
from mergemoe.calibration.token_sequences import heldout_rows
from mergemoe.compressed import compress
from mergemoe.errors import UserError
from mergemoe.grouping import cluster, quick_search

pytestmark = pytest.mark.usefixtures("own_module_cache")


REFINE = {"steps": 8, "batch": 64}
GPTQ, ROUND = {"by": "gptq", "bits": 3, "group": 8}, {"by": "round", "format": "Q8_0"}
HOW = [
    (torch.float32, "mergemoe", None, None),
    (torch.bfloat16, "select", None, None),
    (torch.bfloat16, "oracle", None, None),
    (torch.bfloat16, "mergemoe", REFINE, None),
    (torch.float32, "mergemoe", REFINE, GPTQ),
    (torch.bfloat16, "average", None, {**GPTQ, "by": "descent", **REFINE, "rest": "Q8_0"}),
]
NAMES = ["qwen3_moe", "gpt_oss", "nemotron_h", "dbrx", "longcat_flash", "jetmoe", "llama4_text"]


ALONE = torch.zeros(8, 3).int()  # tokens only in the sequence that is held out
ALONE[heldout_rows(8, 0.125, 0).index(True)] = 1


def swept(name):
    return pytest.param(name, marks=() if name == "qwen3_moe" else pytest.mark.full)


@pytest.mark.parametrize(("dtype", "method", "refine", "quantize"), HOW)
@pytest.mark.parametrize("name", [swept(name) for name in NAMES])
def test_the_weights_are_the_workflows_bit_for_bit(name, dtype, method, refine, quantize, tmp_path):
    path = architectures.save(name, tmp_path / "full", dtype)
    expected = by_workflow(path, drawn(), tmp_path, dtype, method, refine=refine, quantize=quantize)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    added = {"refine": refine, "quantize": quantize}
    how = {"experts": 4, "method": method, "seed": 7, "holdout": 0.25, "batch_tokens": 48, **added}
    found = mergemoe.compress(model, drawn(), **how)
    assert found is model
    state = expected.state_dict()
    assert state.keys() == found.state_dict().keys()
    for key, tensor in found.state_dict().items():
        assert torch.equal(tensor, state[key]), key
    with torch.no_grad():
        assert torch.equal(found(**drawn()).logits, expected(**drawn()).logits)


GROUPED = [
    {"method": "joint", "routing": "folded", "features": "selected", "by": "selection"},
    {"method": "joint", "by": "outputs"},
    {"method": "average", "by": "router", "max_size": 2},
    {"method": "select", "by": "selection", "search": "quick", "max_size": 3},
]


@pytest.mark.parametrize("how", GROUPED, ids=lambda how: f"{how['method']} by {how['by']}")
def test_every_grouping_of_the_workflow_can_be_asked_for(how, tmp_path):
    path = architectures.save("qwen3_moe", tmp_path / "full", torch.float32)
    options = {name: value for name, value in how.items() if name not in ("method", "by", "max_size", "search")}
    grouping = {name: how[name] for name in ("by", "max_size", "search") if name in how}
    expected = by_workflow(path, drawn(), tmp_path, torch.float32, how["method"], grouping=grouping, **options)
    kept = 6 if "routing" in how else 4
    found = mergemoe.compress(
        mergemoe.load(path, "cpu"), drawn(), experts=kept, seed=7, holdout=0.25, batch_tokens=48, **how
    ).state_dict()
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.state_dict().items())
    usual = {name: value for name, value in how.items() if name not in grouping}
    other = mergemoe.compress(
        mergemoe.load(path, "cpu"), drawn(), experts=kept, seed=7, holdout=0.25, batch_tokens=48, **usual
    ).state_dict()
    assert any(not torch.equal(tensor, other[key]) for key, tensor in found.items() if "experts" in key)


def test_saving_what_was_compressed_in_memory_loads_both_ways(tiny, tmp_path):
    model = mergemoe.load(tiny, "cpu", torch.float32)
    ids = torch.randint(3, 4096, (6, 16), generator=torch.Generator().manual_seed(2))
    model = mergemoe.compress(model, ids, experts=0.5, method="average", layers=[2])
    mergemoe.save(model, tmp_path / "saved_tiny")
    library = mergemoe.load(tmp_path / "saved_tiny", "cpu", torch.float32)
    remote = AutoModelForCausalLM.from_pretrained(tmp_path / "saved_tiny", trust_remote_code=True, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(library(ids).logits, model(ids).logits)
        assert torch.equal(remote(ids).logits, model(ids).logits)
    config = json.loads((tmp_path / "saved_tiny" / "config.json").read_text())
    assert [facts["experts"] for facts in config["mergemoe"]["experts"].values()] == [[8, 4]]
    assert (tmp_path / "saved_tiny" / "tokenizer.json").is_file()
    assert (tmp_path / "saved_tiny" / "generation_config.json").is_file()
    with pytest.raises(UserError, match="exists"):
        mergemoe.save(model, tmp_path / "saved_tiny")


def test_layers_may_differ_in_their_number_of_experts(tiny, tmp_path):
    ids = torch.randint(3, 4096, (6, 16), generator=torch.Generator().manual_seed(2))
    model = mergemoe.load(tiny, "cpu", torch.float32)
    mergemoe.compress(model, ids, experts=3, layers=[1])
    with pytest.raises(UserError, match=r"layers \[0\] have no experts; those that do: 1, 2"):
        mergemoe.compress(mergemoe.load(tiny, "cpu"), ids, layers=[0])
    assert [len(model.model.layers[i].mlp.experts.gate_up_proj) for i in (1, 2)] == [3, 8]


def test_what_was_compressed_is_not_compressed_again(tiny):
    ids = torch.randint(3, 4096, (6, 16), generator=torch.Generator().manual_seed(2))
    model = mergemoe.compress(mergemoe.load(tiny, "cpu", torch.float32), ids, method="average")
    with pytest.raises(UserError, match="compressed already"):
        mergemoe.compress(model, ids)


def test_a_dense_model_is_refused(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1))
    with pytest.raises(UserError, match="no experts"):
        mergemoe.compress(model, torch.ones(4, 8, dtype=torch.int64))


def test_the_kernel_is_what_it_was(tiny):
    ids = torch.randint(3, 4096, (6, 16), generator=torch.Generator().manual_seed(2))
    model = mergemoe.load(tiny, "cpu", torch.float32)
    before = model.config._experts_implementation
    mergemoe.compress(model, ids, method="average")
    assert model.config._experts_implementation == before != "eager"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"experts": 1.5}, "experts: 1.5 is neither"),
        ({"experts": 0}, "experts: 0 is neither"),
        ({"experts": -1}, "experts: -1 is neither"),
        ({"experts": True}, "experts: True is neither"),
        ({"experts": 9}, r"more experts than the layer has \(8\)"),
        ({"layers": "12"}, "layers 12 have no experts; those that do: 1, 2"),
        ({"layers": "2-1"}, "is an empty range"),
        ({"layers": [0]}, r"layers \[0\] have no experts"),
        ({"method": "foo"}, "no method 'foo'; there are: average, msmoe"),
        ({"rigde": 1.0}, "method select has no option rigde; it has: width, width_multiple, ridge"),
        ({"refine": {"1" * 5000: 1}}, r"refine has no option 1{100}\.\.\.1{100}; it has"),
        ({"method": "average", "ridge": 1.0}, "method average has no option ridge; it has: none"),
        ({"layers": []}, "`layers` is empty"),
        ({"layers": 1}, "a list of layers; got 1"),
        (
            {"method": "slim"},
            "method slim needs `width` .share of an expert's neurons.*: a number",
        ),
        ({"method": "slim", "width": 0.5, "experts": 4}, "slim keeps all experts"),
        ({"width": 1.5}, "method select, `width`: got 1.5; it must be a number above 0 and at most 1"),
        ({"width": "auto"}, "method select, `width`: got 'auto'; it must be a number above 0 and at most 1"),
        ({"width": 0.0}, "method select, `width`: got 0.0"),
        ({"ridge": "Auto"}, "method select, `ridge`: got 'Auto'; it must be auto, or a number at least 0"),
        ({"ridge": -1.0}, "method select, `ridge`: got -1.0"),
        ({"memory": 0}, "method select, `memory`: got 0; it must be a number above 0"),
        ({"method": "mergemoe", "ridge": "auto"}, "method mergemoe, `ridge`: got 'auto'"),
        ({"method": "joint", "routing": "bogus"}, "method joint, `routing`: got 'bogus'; it must be preserved, pruned"),
        ({"method": "joint", "features": "bogus"}, "method joint, `features`: got 'bogus'; it must be plain, usage"),
        ({"method": "routed", "width": 0.5}, "method routed: `width` below 1 needs `features: selected`"),
        ({"by": "weights"}, "`by`: got 'weights'; method select needs groups by selection"),
        ({"by": ["selection"]}, r"`by`: got \['selection'\]"),
        ({"method": "joint", "by": "saliency"}, "`by`: groups by saliency prune experts, but the routing is preserved"),
        ({"method": "joint", "by": "selection", "width": 0.5, "features": "plain"}, "`width` below 1 needs"),
        ({"max_size": 1}, "`max_size` must be a whole number of at least 2, or None; got 1"),
        ({"max_size": True}, "`max_size` must be a whole number of at least 2, or None; got True"),
        ({"max_size": 3, "experts": 2}, "`max_size` 3 is too small for 2 groups of 8 experts"),
        ({"method": "hcsmoe", "max_size": 3}, "`max_size` applies to groups by weights, router, selection; these are"),
        ({"search": "slow"}, "`search` must be full or quick, with groups by selection; got 'slow' by selection"),
        ({"method": "mergemoe", "search": "quick"}, "`search` must be .* got 'quick' by weights"),
        ({"holdout": 0.0}, "method select chooses its ridge by held-out sequences.* `holdout`"),
        ({"refine": "tuned"}, "`refine` must be \"auto\", or a mapping of its options; got 'tuned'"),
        ({"refine": {"step": 3}}, "refine has no option step; it has: steps, batch"),
        ({"refine": {"steps": 1.5}}, "refine, `steps`: got 1.5; it must be .*whole number at least 0"),
        ({"refine": {"parts": ["norm"]}}, r"refine, `parts`: got \['norm'\]; it must be a list"),
        ({"refine": {"parts": ["up", "router"]}}, "refine: `parts` names the router, but the routing is preserved"),
        ({"refine": "auto", "ridge": 0.1, "holdout": 0.0}, "a descent keeps the weights.*takes 2 of them.*there are 0"),
        (
            {"refine": "auto", "ridge": 0.1, "holdout": 0.01},
            "a descent keeps the weights.*takes 2 of them.*there are 1",
        ),
        ({"quantize": "q4"}, "`quantize` must be a mapping with `by`, one of round, gptq, descent; got 'q4'"),
        ({"quantize": {"bits": 4}}, r"`quantize` must be a mapping with `by`.* got \{'bits': 4\}"),
        ({"quantize": {"by": "gptq"}}, r"quantize by gptq needs `bits` \(of a weight; if not whole"),
        ({"quantize": {"by": "gptq", "bits": 4, "parts": 1}}, "quantize by gptq has no option parts; it has: bits"),
        ({"quantize": {"by": "gptq", "bits": 9}}, "quantize by gptq, `bits`: got 9; it must be a number at least 2"),
        ({"quantize": {"by": "gptq", "bits": 4, "group": 24}}, "quantize: rows .* cannot be divided into blocks of 24"),
        ({"quantize": GPTQ | {"by": "descent"}, "holdout": 0.0, "ridge": 0.1}, "a descent keeps the weights"),
        ({"refine": True}, '`refine` must be "auto", or a mapping of its options; got True'),
        ({"refine": ["gate"]}, '`refine` must be "auto", or a mapping'),
        ({"refine": np.array([1, 2])}, '`refine` must be "auto", or a mapping'),
        ({"method": {1}}, r"no method \{1\}; there are"),
        ({"method": np.array([1, 2])}, "no method array"),
        ({"layers": torch.tensor(4)}, r"a list of layers; got tensor\(4\)"),
        ({"layers": [True]}, r"whole numbers; got \[True\]"),
        ({"layers": "1" * 5000}, "is neither `all` nor a range"),
        ({"experts": 10**5000}, "experts: <int> is neither|`experts: <int>` asks for more"),
        ({"refine": {1: 2}}, "refine has no option 1; it has: steps"),
        ({"refine": {"rate": 10**400}}, "refine, `rate`: got 1000"),
        ({"refine": {"seed": 10**400}}, "refine, `seed`: got 1000"),
        ({"refine": {"seed": 2**60}}, "refine, `seed`: got 11529"),
        ({"holdout": -1}, "`holdout` must be a share of the sequences, at least 0 and below 1; got -1"),
        ({"holdout": 10**400}, "`holdout` must be a share"),
        ({"holdout": float("nan")}, "`holdout` must be a share.*; got nan"),
        ({"holdout": "half"}, "`holdout` must be a share.*; got 'half'"),
        ({"seed": 0.5}, "`seed` must be a whole number; got 0.5"),
        ({"experts": float("nan")}, "experts: nan is neither"),
        ({"batch_tokens": 0}, "`batch_tokens` must be a whole number above 0; got 0"),
        ({"batch_tokens": 2.5}, "`batch_tokens` must be a whole number above 0; got 2.5"),
        ({"layers": [1.5]}, r"`layers` must name layers by whole numbers; got \[1.5\]"),
        ({"tokens": torch.full((2, 9), 4096)}, "ids from 4096 to 4096, and the model's embedding has rows 0 to 4095"),
        ({"tokens": torch.full((2, 9), -100)}, "ids from -100 to -100.*not -100"),
        ({"tokens": torch.ones(2, 9, dtype=torch.bool)}, "must be token ids"),
        ({"tokens": {"input_ids": torch.ones(2, 3).int(), "attention_mask": torch.full((2, 3), 0.5)}}, "must be 1 on"),
        ({"tokens": {"input_ids": torch.ones(2, 3).int(), "attention_mask": [[1]]}}, "attention_mask list does not"),
        (
            {"tokens": {"input_ids": torch.ones(8, 3).int(), "attention_mask": ALONE}, "ridge": 0.1},
            "every sequence that has tokens is held out",
        ),
        ({"tokens": torch.arange(9)}, "must be token ids"),
        ({"tokens": torch.rand(2, 9)}, "must be token ids"),
        ({"tokens": {"input_ids": [[1, 2]]}}, "must be token ids"),
        ({"tokens": {"input_ids": torch.ones(2, 3).int(), "attention_mask": torch.zeros(2, 3)}}, "masks every token"),
    ],
)
def test_an_argument_that_means_nothing_is_refused_before_anything_is_computed(tiny, monkeypatch, arguments, words):
    model = mergemoe.load(tiny, "cpu")
    monkeypatch.setattr(type(model), "forward", None)
    monkeypatch.setattr(type(model.model), "forward", None)
    with pytest.raises(UserError, match=words):
        mergemoe.compress(model, **{"tokens": drawn(), **arguments})
    assert not hasattr(model.config, "mergemoe")


def test_a_number_of_experts_may_be_numpys_and_none_may_be_held_out_where_the_ridge_is_given(tiny):
    model = mergemoe.compress(mergemoe.load(tiny, "cpu"), drawn(), experts=np.int64(3), holdout=0.0, ridge=0.1)
    assert [len(layer.mlp.experts.down_proj) for layer in model.model.layers[1:]] == [3, 3]


def test_it_says_what_it_does_before_it_begins(tiny, capsys):
    refine = {"steps": 2}
    mergemoe.compress(mergemoe.load(tiny, "cpu"), drawn(), experts=3, holdout=0.25, refine=refine, ridge=0.1)
    assert "compress: 2 layers, 8 experts to 3, by `select`, then a refine of 2 steps\n" in capsys.readouterr().err


def test_inference_mode_is_refused_and_autocast_changes_nothing(tiny):
    with torch.inference_mode(), pytest.raises(UserError, match="does not run inside torch.inference_mode"):
        mergemoe.compress(mergemoe.load(tiny, "cpu"), drawn())
    plain, cast = (mergemoe.load(tiny, "cpu") for _ in range(2))
    options = {"ridge": 0.1, "holdout": 0.25, "refine": {"steps": 3, "batch": 32}}
    mergemoe.compress(plain, drawn(), **options)
    with torch.autocast("cpu", torch.bfloat16):
        mergemoe.compress(cast, drawn(), **options)
    assert all(torch.equal(part, cast.state_dict()[name]) for name, part in plain.state_dict().items())


def test_parts_that_the_experts_lack_are_refused_before_anything_is_computed(tmp_path):
    model = mergemoe.load(architectures.save("nemotron_h", tmp_path), "cpu")
    with pytest.raises(UserError, match="refine: `parts` names gate, which these experts do not have. Name some of up"):
        mergemoe.compress(model, drawn(), method="average", holdout=0.25, refine={"parts": ["gate"]})


@pytest.mark.parametrize(("many", "search"), [(9, "full"), (8, "quick")])
def test_layers_of_many_experts_are_grouped_by_a_quick_search(tiny, monkeypatch, many, search):
    monkeypatch.setattr(quick_search, "MANY", many)
    searches = []

    def group(*args, **options):
        searches.append(options["search"])
        return cluster.group_experts(*args, **options)

    monkeypatch.setattr(compress, "cluster", SimpleNamespace(group_experts=group))
    mergemoe.compress(mergemoe.load(tiny, "cpu"), drawn(), ridge=0.1)
    assert searches == [search] * 2


def test_layers_may_be_a_range_as_in_params_yaml(tiny):
    model = mergemoe.compress(mergemoe.load(tiny, "cpu"), drawn(), layers="2")
    assert [len(layer.mlp.experts.down_proj) for layer in model.model.layers[1:]] == [8, 4]


def test_a_class_that_could_not_be_loaded_again_is_refused_before_the_model_is_touched(tiny):
    class Mine(transformers.Qwen3MoeForCausalLM):
        pass

    for cls, words in (
        (Mine, "Mine is not a class of transformers"),
        (transformers.Qwen3MoeModel, "is not one of transformers' classes that generate text"),
        (transformers.Qwen3MoeForSequenceClassification, "is not one of transformers' classes that generate text"),
    ):
        model = cls.from_pretrained(tiny)
        with pytest.raises(UserError, match=words):
            mergemoe.compress(model, drawn())
        assert not hasattr(model.config, "mergemoe")


def test_dropout_is_off_while_it_runs_and_on_again_afterwards(tmp_path):
    folder = make_tiny(tmp_path / "model", attention_dropout=0.5)
    still, trained = mergemoe.load(folder, "cpu"), mergemoe.load(folder, "cpu").train()
    trained.lm_head.eval()
    for model in (still, trained):
        mergemoe.compress(model, drawn(), layers=[2])
    assert trained.training and trained.model.layers[0].training and not trained.lm_head.training
    assert not still.training
    for key, tensor in still.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[key]), key


def test_a_pass_that_fails_leaves_no_hook_on_the_model(tiny):
    model = mergemoe.load(tiny, "cpu")
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="NaN"):
        mergemoe.compress(model, drawn())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_computing_equal_experts_once_is_not_saved(tiny, tmp_path):
    mergemoe.save(mergemoe.compress(mergemoe.load(tiny, "cpu"), drawn()), tmp_path / "compact")
    mergemoe.save(mergemoe.load(tmp_path / "compact", "cpu", deduplicate=True), tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "compact" / "config.json").read_text()
    assert not mergemoe.load(tmp_path / "again", "cpu").model.layers[1].mlp.experts.deduplicate


def test_save_writes_a_card_of_what_was_done(tmp_path):
    path = architectures.save("qwen3_moe", tmp_path / "full", torch.float32)
    (path / "README.md").write_text("---\nlicense: mit\n---\n# Original\n")
    model = mergemoe.compress(mergemoe.load(path, "cpu"), drawn(), experts=4, seed=3)
    mergemoe.save(model, tmp_path / "saved")
    card = ModelCard.load(tmp_path / "saved" / "README.md")
    assert (card.data.license, card.data.base_model, card.data.base_model_relation) == ("mit", "full", "finetune")
    assert "| solve |  | method: select, width: 1.0, width_multiple: 32, ridge: auto, memory: 8.0 |" in card.text
    assert "| cluster |  | by: selection, experts: 4 |" in card.text and "seed: 3" in card.text
    assert "trust_remote_code=True" in card.text and str(tmp_path) not in card.text
    slim = mergemoe.compress(mergemoe.load(path, "cpu"), drawn(), method="slim", width=0.5)
    mergemoe.save(slim, tmp_path / "slim")
    assert "It is a stock checkpoint" in (tmp_path / "slim" / "README.md").read_text()


def test_a_saved_folder_can_be_uploaded_as_it_is(tiny, tmp_path):
    # What huggingface_hub checks before it asks the hub: metadata of the card, paths in a repository, sizes.
    model = mergemoe.compress(mergemoe.load(tiny, "cpu"), drawn(), experts=4, method="average")
    mergemoe.save(model, tmp_path / "saved")
    card = ModelCard.load(tmp_path / "saved" / "README.md")
    assert ModelCardData(**card.data.to_dict()).to_yaml() == card.data.to_yaml()
    known = {"license", "base_model", "base_model_relation", "library_name", "pipeline_tag", "tags"}
    assert card.data.to_dict().keys() <= known and card.data.base_model_relation == "finetune"
    files = [path for path in (tmp_path / "saved").rglob("*") if not path.is_dir()]
    for path in files:
        added = CommitOperationAdd(str(path.relative_to(tmp_path / "saved")), path)
        assert path.is_file() and not path.is_symlink() and added.upload_info.size == path.stat().st_size > 0
    assert {"README.md", "config.json", "model.safetensors", "modeling_mergemoe.py"} <= {path.name for path in files}


def test_the_card_is_the_same_for_numpys_numbers(tiny, tmp_path):
    given = {"experts": 4, "seed": 3, "holdout": 0.25, "ridge": 0.5, "memory": 4.0, "width_multiple": 8, "max_size": 4}
    numpys = {name: np.float32(value) if type(value) is float else np.int64(value) for name, value in given.items()}
    cards = []
    for i, numbers in enumerate((given, numpys)):
        refine = {"steps": numbers["experts"], "rate": numbers["ridge"]}
        model = mergemoe.compress(mergemoe.load(tiny, "cpu"), drawn(), **numbers, refine=refine)
        mergemoe.save(model, tmp_path / str(i))
        cards.append((tmp_path / str(i) / "README.md").read_text())
    assert cards[0] == cards[1] and "seed: 3" in cards[0]


def test_the_tokenizer_comes_along_wherever_save_is_called(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny.parent)
    model = mergemoe.load(tiny.name, "cpu")
    monkeypatch.chdir(tmp_path)
    mergemoe.save(model, tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()
    model.name_or_path = "org/of-the-hub"
    with pytest.warns(UserWarning, match="has no tokenizer"):
        mergemoe.save(model, tmp_path / "alone")
