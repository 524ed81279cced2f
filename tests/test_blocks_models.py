"""Blocks and models against transformers, torch's own layers and counting; their initialisation; what they refuse."""
import hashlib
import inspect
import itertools
import logging
import math
import subprocess
import sys

import pytest
import torch
import torch.nn as nn
from scipy import stats
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from iclrepro.blocks import BLOCKS, MLP, Attention, Block, Mamba, register_block, reset_linear
from iclrepro.models import ARCHITECTURES, TITLES, ModelConfig, SequenceModel, architecture, build_model, parse_pattern, predict
from iclrepro.prompts import Draws, Prompt, interleave
from iclrepro.tasks import Curriculum, LinearRegression, Ramp
from iclrepro.training import TrainConfig, Training, training_flops

logging.getLogger("transformers").setLevel(logging.ERROR)
from transformers import GPT2Config, GPT2Model, MambaConfig  # noqa: E402
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP  # noqa: E402
from transformers.models.mamba.modeling_mamba import MambaMixer  # noqa: E402


TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}  # relative to the largest value of each tensor
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))


def perturbed(module, seed=0):
    "The module with weights that leave nothing at 0, at 1 or equal to another."
    draws = Draws(seed, stream="init")
    with torch.no_grad():
        for p in module.parameters(): p.add_(0.2 * draws.normal(*p.shape))
    return module


def block_of(cls, *sizes, seed=0):
    block = cls(*sizes)
    with torch.no_grad():
        block.reset(Draws(seed, stream="init"), "mamba", 4)
    return perturbed(block, seed + 1)


def gradients(output, leaves):
    "The gradients of a fixed weighted sum of the output."
    weights = torch.cos(torch.arange(output.numel(), dtype=torch.float64)).to(output.dtype).view_as(output)
    return torch.autograd.grad((output * weights).sum(), leaves, materialize_grads=True)


def assert_equal(ours, theirs, dtype, zero=()):
    "By name: tensors agree to the rounding of `dtype`, and none of them is trivially zero but those that must be."
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].shape == theirs[name].shape, name
        scale = theirs[name].abs().max().item() if name not in zero else 1.0
        assert scale > 0, f"{name} is 0 in the reference"
        error = (ours[name].double() - theirs[name].double()).abs().max().item() / scale
        assert error < TOLERANCE[dtype], f"{name}: relative error {error:.1e}"


def with_gradients(module, function, x):
    "Output, and gradients of the input and of every parameter, by name."
    names, parameters = zip(*module.named_parameters())
    x = x.detach().requires_grad_()
    output = function(x)
    return dict(zip(("output", "input", *names), (output.detach(), *gradients(output, [x, *parameters]))))


def mixer_of(block):
    "transformers' Mamba mixer with the weights of our block (shared, so that gradients arrive at ours), and ours by its names."
    d_inner, d_conv = block.conv_weight.shape
    d_model = block.in_proj.in_features
    config = MambaConfig(vocab_size=4, hidden_size=d_model, state_size=block.d_state, conv_kernel=d_conv, expand=d_inner // d_model, num_hidden_layers=1)
    mixer = MambaMixer(config, 0)
    own = {name: p for name, p in block.named_parameters() if not name.startswith("norm.")}
    ours = {name.replace("conv_", "conv1d."): p[:, None] if name == "conv_weight" else p for name, p in own.items()}
    assert {name: p.shape for name, p in mixer.named_parameters()} == {name: p.shape for name, p in ours.items()}
    return mixer, ours


def mamba_reference(block):
    mixer, ours = mixer_of(block)
    return lambda x: x + torch.func.functional_call(mixer, ours, (block.norm(x),))


@pytest.fixture
def no_downcast(monkeypatch):
    "transformers computes parts of its mixer in float32 whatever the weights are; let it keep their dtype."
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32))


MAMBA_SIZES = pytest.mark.parametrize("d_model, d_state, d_conv, expand, length", [(32, 16, 4, 2, 17), (20, 5, 3, 3, 9), (16, 16, 4, 2, 1), (48, 1, 1, 1, 40)])


@DTYPES
@MAMBA_SIZES
def test_mamba_is_transformers_mixer(d_model, d_state, d_conv, expand, length, dtype, no_downcast):
    "Float32 is compared with their float64, so that the fused kernels answer for their own rounding only."
    block = block_of(Mamba, d_model, d_state, d_conv, expand)
    x = Draws(1).normal(3, length, d_model)
    ours = with_gradients(block.to(dtype), block, x.to(dtype))
    block = block.double()
    # A single token forgets nothing: how fast A would decay does not matter.
    assert_equal(ours, with_gradients(block, mamba_reference(block), x.double()), dtype, zero=["A_log"] if length == 1 else [])


def attention_reference(block):
    "torch.nn.MultiheadAttention with the weights of our block, shared."
    d_model, heads = block.out.in_features, block.n_heads
    module = nn.MultiheadAttention(d_model, heads, batch_first=True)
    weights = {"in_proj_weight": block.qkv.weight, "in_proj_bias": block.qkv.bias, "out_proj.weight": block.out.weight, "out_proj.bias": block.out.bias}

    def attend(x):
        h = block.norm(x)
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return x + torch.func.functional_call(module, weights, (h, h, h), {"attn_mask": future, "need_weights": True})[0]

    return attend


@DTYPES
@pytest.mark.parametrize("d_model, heads, length", [(32, 4, 17), (24, 1, 9), (16, 8, 2), (20, 5, 1), (64, 8, 82)])
def test_attention_is_torchs(d_model, heads, length, dtype):
    block = block_of(Attention, d_model, heads)
    x = Draws(2).normal(3, length, d_model)
    ours = with_gradients(block.to(dtype), block, x.to(dtype))
    block = block.double()
    theirs = with_gradients(block, attention_reference(block), x.double())
    if length == 1:  # a single token: softmax is 1 whatever queries and keys are, so only values have gradients
        for part in (ours, theirs): part |= {name: part[name][2 * d_model:] for name in ("qkv.weight", "qkv.bias")}
    assert_equal(ours, theirs, dtype)


def test_attention_is_a_loop():
    "Softmax of scaled products over the past, one head, query and key at a time."
    block = block_of(Attention, 12, 3).double().requires_grad_(False)
    x = Draws(3).normal(2, 6, 12).double()
    q, k, v = block.qkv(block.norm(x)).split(12, -1)
    mixed = torch.zeros_like(x)
    for b, head, t in itertools.product(range(2), range(3), range(6)):
        part = slice(4 * head, 4 * head + 4)
        weights = [math.exp((q[b, t, part] * k[b, s, part]).sum() / math.sqrt(4)) for s in range(t + 1)]
        for s in range(t + 1): mixed[b, t, part] += weights[s] / sum(weights) * v[b, s, part]
    assert_equal({"output": block(x)}, {"output": x + block.out(mixed)}, torch.float64)


@DTYPES
def test_mlp_is_gpt2s(dtype):
    block = block_of(MLP, 24)
    x = Draws(4).normal(3, 7, 24)
    ours = with_gradients(block.to(dtype), block, x.to(dtype))
    block = block.double()
    module = GPT2MLP(96, GPT2Config(vocab_size=4, n_embd=24, resid_pdrop=0.0, bos_token_id=0, eos_token_id=0))

    def theirs(x):
        weights = {"c_fc.weight": block.up.weight.T, "c_fc.bias": block.up.bias, "c_proj.weight": block.down.weight.T, "c_proj.bias": block.down.bias}
        return x + torch.func.functional_call(module, weights, (block.norm(x),))

    assert_equal(ours, with_gradients(block, theirs, x.double()), dtype)


def gpt2_weights(model):
    "The weights of our Transformer by transformers' names; its Conv1D keeps them transposed."
    weights = {"wpe.weight": model.positions, "ln_f.weight": model.norm.weight, "ln_f.bias": model.norm.bias}
    for layer in range(len(model.blocks) // 2):
        attention, mlp = model.blocks[2 * layer:2 * layer + 2]
        for name, module in (("ln_1", attention.norm), ("attn.c_attn", attention.qkv), ("attn.c_proj", attention.out),
                             ("ln_2", mlp.norm), ("mlp.c_fc", mlp.up), ("mlp.c_proj", mlp.down)):
            weight = module.weight.T if isinstance(module, nn.Linear) else module.weight
            weights |= {f"h.{layer}.{name}.weight": weight, f"h.{layer}.{name}.bias": module.bias}
    return weights


@DTYPES
def test_the_transformer_is_gpt2(dtype):
    "The whole model, from tokens to predictions, forward and backward."
    model = perturbed(build_model(architecture("transformer", 5, n_layers=3, d_model=32, n_heads=4, n_points=12), 0))
    prompt = LinearRegression(5, 9).sample(Draws(5), 3)
    config = GPT2Config(vocab_size=1, n_positions=24, n_embd=32, n_layer=3, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                        bos_token_id=0, eos_token_id=0, attn_implementation="eager")
    assert (config.activation_function, config.layer_norm_epsilon, config.n_inner) == ("gelu_new", 1e-5, None)
    gpt2 = GPT2Model(config)
    tokens = interleave(prompt)
    ours = with_gradients(model.to(dtype), model, tokens.to(dtype))
    model = model.double()
    weights = gpt2_weights(model)
    assert weights.keys() == {name for name, _ in gpt2.named_parameters()} - {"wte.weight"}

    def theirs(tokens):
        hidden = torch.func.functional_call(gpt2, weights, (), {"inputs_embeds": model.read_in(tokens)}).last_hidden_state
        return model.read_out(hidden)[:, ::2]

    reference = with_gradients(model, theirs, tokens.double())
    assert_equal(ours, reference, dtype)
    assert (reference["positions"][:17] != 0).all() and (ours["positions"][17:] == 0).all()


@DTYPES
@pytest.mark.parametrize("name", ["mamba", "mambaformer", "transformer_nope"])
def test_a_model_is_its_blocks_on_a_residual_stream(name, dtype, no_downcast):
    "Blocks of other libraries, strung together by hand."
    config = architecture(name, 5, n_layers=1, d_model=32, n_heads=4)
    model = perturbed(build_model(config, 0))
    tokens = interleave(LinearRegression(5, 9).sample(Draws(6), 3))
    ours = with_gradients(model.to(dtype), model, tokens.to(dtype))
    model = model.double()
    letters = {"mamba": "MM", "mambaformer": "MAM", "transformer_nope": "AP"}[name]
    reference = {"M": mamba_reference, "A": attention_reference, "P": lambda block: lambda x: block(x)}
    assert [type(block) for block in model.blocks] == [{"M": Mamba, "A": Attention, "P": MLP}[letter] for letter in letters]

    def theirs(tokens):
        h = tokens @ model.read_in.weight.T + model.read_in.bias
        for letter, block in zip(letters, model.blocks): h = reference[letter](block)(h)
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() * model.norm.weight + model.norm.bias
        return torch.stack([h[:, token] @ model.read_out.weight.T + model.read_out.bias for token in range(0, 17, 2)], 1)

    assert_equal(ours, with_gradients(model, theirs, tokens.double()), dtype)


def test_predictions_are_read_at_the_inputs():
    model = build_model(architecture("mamba", 5, n_layers=1, d_model=16), 0)
    prompt = LinearRegression(5, 9).sample(Draws(7), 3)
    assert torch.equal(predict(model, prompt), model(interleave(prompt))[..., 0]) and predict(model, prompt).shape == (3, 9)
    wide = build_model(ModelConfig("mamba", d_in=5, d_out=3, d_model=16), 0)
    assert predict(wide, prompt).shape == (3, 9, 3)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_causal_and_uses_all_of_the_past(name):
    model = perturbed(build_model(architecture(name, 4, n_layers=2, d_model=32, n_heads=4, n_points=8), 0))
    tokens = interleave(LinearRegression(4, 8).sample(Draws(8), 2)).requires_grad_()
    output = model(tokens)
    for point in range(8):
        influence = torch.autograd.grad(output[:, point].sum(), tokens, retain_graph=True)[0].abs().amax((0, 2))
        assert (influence[2 * point + 1:] == 0).all(), f"prediction {point} sees the future"
        assert (influence[:2 * point + 1] > 0).all(), f"prediction {point} misses some of the past"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_prefix_predicts_the_same(name):
    "What stands behind a question does not change its answer, in value either."
    model = build_model(architecture(name, 4, n_layers=2, d_model=32, n_heads=4, n_points=8), 0)
    prompt = LinearRegression(4, 8).sample(Draws(9), 2)
    whole = predict(model, prompt)
    for points in (1, 3, 7):
        assert torch.allclose(predict(model, Prompt(*(part[:, :points] for part in prompt))), whole[:, :points], atol=1e-6)


def count(module): return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name, parameters", [("transformer", 9_534_977), ("mamba", 10_524_673), ("mambaformer", 8_867_841)])
def test_parameters_are_as_many_as_in_the_released_models(name, parameters):
    with torch.device("meta"): model = SequenceModel(architecture(name, 20))
    assert count(model) == parameters


@pytest.mark.parametrize("d", [64, 128, 256, 40])
def test_parameters_of_each_block(d):
    with torch.device("meta"):
        assert count(Attention(d)) == 4 * d**2 + 6 * d
        assert count(Attention(d)) + count(MLP(d)) == 12 * d**2 + 13 * d
        assert count(Mamba(d)) == 6 * d**2 + 4 * d * math.ceil(d / 16) + 112 * d


def test_parameters_of_park_et_als_mamba_blocks():
    with torch.device("meta"): assert [count(Mamba(d)) for d in (64, 128, 256)] == [32_768, 116_736, 438_272]


def assert_normal(weight, std):
    z = weight.detach().double().flatten() / std
    assert abs(z.mean()) < 5 / math.sqrt(len(z)) and abs(z.var() - 1) < 5 * math.sqrt(2 / len(z))
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-6


def assert_uniform(weight, bound):
    z = weight.detach().double().flatten() / bound
    assert z.abs().max() <= 1 + 1e-6
    assert stats.kstest(z.numpy(), "uniform", args=(-1, 2)).pvalue > 1e-6


def assert_constant(weight, value): assert (weight == value).all()


def test_the_transformer_starts_as_gpt2():
    "N(0, 0.02^2), what is added to the residual stream scaled by 1 / sqrt(2 layers), biases 0; read-in and read-out as torch does."
    model = build_model(architecture("transformer", 20, n_layers=3, d_model=256), 5)
    assert_normal(model.positions, 0.02)
    for attention, mlp in zip(model.blocks[::2], model.blocks[1::2]):
        assert_normal(attention.qkv.weight, 0.02), assert_normal(mlp.up.weight, 0.02)
        assert_normal(attention.out.weight, 0.02 / math.sqrt(6)), assert_normal(mlp.down.weight, 0.02 / math.sqrt(6))
        for linear in (attention.qkv, attention.out, mlp.up, mlp.down): assert_constant(linear.bias, 0)
    for linear in (model.read_in, model.read_out):
        assert_uniform(torch.cat([linear.weight.flatten(), linear.bias]), linear.in_features**-0.5)
        assert linear.bias.abs().min() > 0


@pytest.mark.parametrize("name", ["mamba", "mambaformer"])
def test_mamba_starts_as_released(name):
    model = build_model(architecture(name, 20, n_layers=4, d_model=256), 5)
    blocks = [block for block in model.blocks if isinstance(block, Mamba)]
    assert len(blocks) == {"mamba": 8, "mambaformer": 5}[name]
    for block in blocks:
        assert_uniform(block.in_proj.weight, 256**-0.5)
        assert_uniform(block.x_proj.weight, 512**-0.5)
        assert_uniform(block.dt_proj.weight, 16**-0.5)
        assert_uniform(block.conv_weight, 4**-0.5), assert_uniform(block.conv_bias, 4**-0.5)
        assert_uniform(block.out_proj.weight, (512 * 8)**-0.5)  # 8: blocks by the released count, the extra Mamba of MambaFormer left out
        assert_constant(block.D, 1)
        assert torch.allclose(block.A_log.exp(), torch.arange(1.0, 17.0).expand(512, 16), rtol=1e-6)
    dt = torch.cat([torch.nn.functional.softplus(block.dt_proj.bias.double()).detach() for block in blocks])
    assert 1e-3 * (1 - 1e-4) <= dt.min() < 1.02e-3 and 0.98e-1 < dt.max() <= 1e-1 * (1 + 1e-4)
    assert stats.kstest(((dt.log10() + 3) / 2).numpy(), "uniform").pvalue > 1e-6


def test_attention_of_hybrids_starts_as_torchs_linear_and_unscaled():
    model = build_model(architecture("mambaformer", 20, n_layers=4, d_model=256), 5)
    blocks = [block for block in model.blocks if isinstance(block, Attention)]
    assert len(blocks) == 4
    for block in blocks:
        assert_uniform(block.qkv.weight, 256**-0.5), assert_uniform(block.out.weight, 256**-0.5)
        assert_constant(block.qkv.bias, 0), assert_constant(block.out.bias, 0)


def test_the_bound_is_that_of_torchs_linear():
    "What this file calls torch's default, read off torch."
    for fan_in in (20, 256):
        assert_uniform(torch.cat([p.flatten() for p in nn.Linear(fan_in, 500).parameters()]), fan_in**-0.5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_norms_start_as_the_identity_and_nothing_is_left_unset(name):
    model = build_model(architecture(name, 6, n_layers=2, d_model=32, n_heads=4, n_points=8), 0)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            assert_constant(module.weight, 1), assert_constant(module.bias, 0)
            assert module.eps == 1e-5
    poisoned = SequenceModel(model.config)
    with torch.no_grad():
        for p in poisoned.parameters(): p.fill_(torch.nan)
    poisoned.reset(0)
    assert all(torch.equal(p, q) for p, q in zip(poisoned.parameters(), model.parameters()))


def weight_digest(seed):
    sha = hashlib.sha256()
    for name in ARCHITECTURES:
        for p in build_model(architecture(name, 6, n_layers=2, d_model=32, n_heads=4, n_points=8), seed).parameters(): sha.update(p.detach().numpy().tobytes())
    return sha.hexdigest()


def test_initial_weights_are_a_function_of_the_seed():
    state = torch.get_rng_state()
    first = weight_digest(3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert weight_digest(3) == first != weight_digest(4)


def test_a_fresh_process_starts_from_the_same_weights():
    code = ["import hashlib, torch; torch.manual_seed(9); torch.rand(5)", "from iclrepro.models import ARCHITECTURES, architecture, build_model",
            inspect.getsource(weight_digest), "print(weight_digest(3))"]
    done = subprocess.run([sys.executable, "-c", "\n".join(code)], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == weight_digest(3), done.stderr


@pytest.mark.parametrize("pattern, names", [
    ("mamba", ["mamba"]), (" mamba ", ["mamba"]), ("mamba x 3", ["mamba"] * 3), ("mamba x3", ["mamba"] * 3), ("mamba x 10", ["mamba"] * 10),
    ("(attn mlp) x 2", ["attn", "mlp"] * 2), ("(attn mlp)", ["attn", "mlp"]), ("attn mlp", ["attn", "mlp"]), ("( mamba )", ["mamba"]),
    ("mamba + (attn mamba) x 2", ["mamba", "attn", "mamba", "attn", "mamba"]), ("mamba+attn+mlp", ["mamba", "attn", "mlp"])])
def test_patterns_are_read(pattern, names):
    assert parse_pattern(pattern) == tuple(names)
    with torch.device("meta"): assert [type(block) for block in SequenceModel(ModelConfig(pattern, d_in=2, d_model=8)).blocks] == [BLOCKS[name] for name in names]


@pytest.mark.parametrize("pattern", [
    "", " ", "+", "mamba +", "+ mamba", "mamba x", "mamba x 0", "mamba x 00", "mamba x -1", "mamba x 1.5", "mamba x two", "x 3", "3", "attn mlp x 2", "(attn mlp", "attn mlp) x 2",
    "()", "() x 2", "((attn)) x 2", "(attn) (mlp)", "mamba, attn", "mamba * 2", "2 x mamba"])
def test_patterns_that_cannot_be_read_are_refused(pattern):
    with pytest.raises(ValueError, match="(cannot read|unknown block)") as error: parse_pattern(pattern)
    with pytest.raises(ValueError): ModelConfig(pattern, d_in=2)
    assert "unknown block" in str(error.value) or repr(pattern) in str(error.value)


def sizes(**changes): return ModelConfig(**{"pattern": "mamba + attn", "d_in": 3, "d_model": 16, "n_heads": 2, **changes})


BAD = {
    "unknown block": (lambda: sizes(pattern="mambo"), "unknown block 'mambo': choose one of attn, mlp, mamba.*mean 'mamba'"),
    "unknown positions": (lambda: sizes(positions="learnt", n_positions=4), "unknown positions 'learnt'.*none, learned.*mean 'learned'"),
    "unknown init": (lambda: sizes(init="gpt"), "unknown init 'gpt'.*gpt2, mamba"),
    "learned without rows": (lambda: sizes(positions="learned"), "positions is 'learned' with n_positions 0"),
    "rows without learned": (lambda: sizes(n_positions=9), "positions is 'none' with n_positions 9"),
    "negative rows": (lambda: sizes(n_positions=-9), "n_positions.*-9"),
    "no input": (lambda: sizes(d_in=0), "d_in is 0.*at least 1"),
    "no output": (lambda: sizes(d_out=0), "d_out is 0.*at least 1"),
    "no width": (lambda: sizes(d_model=0), "d_model is 0.*at least 1"),
    "no depth": (lambda: sizes(depth=0), "depth is 0.*at least 1"),
    "heads that do not divide": (lambda: build_model(sizes(n_heads=3), 0), "n_heads is 3: it must be at least 1 and divide d_model, 16"),
    "no heads": (lambda: build_model(sizes(n_heads=0), 0), "n_heads is 0"),
    "negative heads": (lambda: build_model(sizes(n_heads=-2), 0), "n_heads is -2"),
    "no states": (lambda: build_model(sizes(d_state=0), 0), "d_state is 0.*at least 1"),
    "no taps": (lambda: build_model(sizes(d_conv=0), 0), "d_conv is 0.*at least 1"),
    "no expansion": (lambda: build_model(sizes(expand=0), 0), "expand is 0.*at least 1"),
    "unknown architecture": (lambda: architecture("mambafromer", 5), "unknown model 'mambafromer': choose one of transformer.*mean 'mambaformer'"),
    "no layers": (lambda: architecture("mamba", 5, n_layers=0), "cannot read 'mamba x 0'"),
    "negative seed": (lambda: build_model(sizes(), -1), "seed is -1"),
    "unknown init of a layer": (lambda: reset_linear(nn.Linear(2, 2), Draws(0), "torch"), "unknown init 'torch'.*gpt2, mamba"),
    "tokens too wide": (lambda: build_model(sizes(), 0)(torch.zeros(1, 3, 4)), "tokens are 4 wide but the model reads 3"),
    "task beyond the model": (lambda: predict(build_model(sizes(), 0), LinearRegression(5, 4).sample(Draws(0), 2)), "tokens are 5 wide but the model reads 3"),
    "points beyond the table": (lambda: predict(build_model(architecture("transformer", 3, 1, 16, 2, n_points=4), 0), LinearRegression(3, 5).sample(Draws(0), 2)),
                                "9 tokens go beyond the positional table of 8 rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_its_reason(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message): call()


def test_a_positional_table_serves_all_its_points():
    model = build_model(architecture("transformer", 3, 1, 16, 2, n_points=4), 0)
    assert predict(model, LinearRegression(3, 4).sample(Draws(0), 2)).shape == (2, 4)


def test_a_new_block_is_one_definition_and_trains(monkeypatch):
    monkeypatch.setitem(BLOCKS, "mean_of_past", None)  # so that the name is gone again after the test

    @register_block("mean_of_past")
    class MeanOfPast(Block):
        """A linear layer of the mean of all tokens so far."""
        def __init__(self, d_model, d_state):
            super().__init__(d_model)
            self.out = nn.Linear(d_model, d_model)
            self.seen = d_state

        def reset(self, draws, init, depth): reset_linear(self.out, draws, init)

        def mix(self, x, draws): return self.out(x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None])

    task = LinearRegression(3, 6)
    config = TrainConfig(task, ModelConfig("mean_of_past + (attn mean_of_past) x 1", 3, d_model=16, n_heads=2, d_state=7), Curriculum.constant(task), 1, seeds=(2,), lr=1e-2)
    training = Training(config)
    model = training.members[0].model
    assert [type(block) for block in model.blocks] == [MeanOfPast, Attention, MeanOfPast] and model.blocks[0].seen == 7
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    training.advance()
    assert training.losses.isfinite().all()
    assert all((p != before[name]).any() for name, p in model.named_parameters())
    assert model.blocks[0].flops(11) == 2 * 11 * 16 * 16


def test_the_blocks_are_those_of_the_papers():
    assert list(BLOCKS) == ["attn", "mlp", "mamba", "s4d", "s4d_post", "s4mamba", "rwkv_time", "rwkv_channel", "lstm"]


def test_each_architecture_has_a_title_and_each_title_a_colour():
    from iclrepro.charts import MODEL_COLOURS
    assert list(TITLES) == list(ARCHITECTURES) and set(TITLES.values()) <= set(MODEL_COLOURS)


def counted(module, x):
    "Floating-point operations of the matrix products in a forward pass, as torch counts them; it cannot look into fused attention."
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter: module(x)
    return counter.get_total_flops()


@pytest.mark.parametrize("length", [1, 7, 30])
def test_flops_are_torchs_count_of_the_matrix_products(length):
    x = torch.zeros(1, length, 32)
    attention, mlp, mamba = block_of(Attention, 32, 4), block_of(MLP, 32), block_of(Mamba, 32, 8, 3, 2)
    assert attention.flops(length) == counted(attention, x)
    assert mlp.flops(length) == counted(mlp, x)
    scan_and_convolution = length * 64 * (9 * 8 + 2 + 2 * 3)
    assert mamba.flops(length) == counted(mamba, x) + scan_and_convolution


@pytest.mark.parametrize("name", ["transformer", "transformer_nope"])
def test_flops_of_a_model_are_torchs_count(name):
    model = build_model(architecture(name, 5, n_layers=2, d_model=32, n_heads=4, n_points=8), 0)
    assert model.flops(15) == counted(model, torch.zeros(1, 15, 5))


@pytest.mark.parametrize("name, tokens, giga", [("transformer", 81, 309), ("mamba", 81, 348), ("mambaformer", 81, 302),
                                                ("transformer", 201, 824), ("mamba", 201, 863), ("mambaformer", 201, 806)])
def test_flops_of_the_papers_models_are_known(name, tokens, giga):
    "A step on 64 prompts, forward and backward, counted by hand; rounded to GFLOP."
    with torch.device("meta"): model = SequenceModel(architecture(name, 20))
    assert abs(3 * 64 * model.flops(tokens) / 1e9 - giga) < 0.7


def test_flops_of_each_block_are_those_of_the_papers_width():
    "A token of Mamba: projections in, out, x and dt, convolution and scan; attention also pays for every pair of tokens."
    with torch.device("meta"):
        assert Mamba(256).flops(1) == 524_288 + 262_144 + 49_152 + 16_384 + 4_096 + 74_752
        for length in (1, 81): assert Attention(256).flops(length) == length * (524_288 + 1_024 * length)
        assert Attention(256).flops(0) + MLP(256).flops(10) == 10 * 2 * 8 * 256**2


def test_flops_of_a_training_are_a_sum_over_its_steps():
    task = LinearRegression(4, 9)
    curriculum = Curriculum(Ramp(2, 4, 1, 3), Ramp(3, 9, 2, 7))
    config = TrainConfig(task, architecture("mambaformer", 4, 1, 16, 2), curriculum, 38, seeds=(0, 5), batch_size=3)
    model = build_model(config.model, 0)
    assert training_flops(config) == sum(3 * 3 * 2 * model.flops(2 * curriculum.points.at(step) - 1) for step in range(38))
