"""Peers are our models: given our weights they give our predictions, package by package; the plain loop is the loop that the engine is proved equal to."""
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from iclrepro.models import architecture, build_model, predict
from iclrepro.peers import PEERS, PlainTraining, attention, build_peer, stack
from iclrepro.prompts import Draws, Prompt
from iclrepro.scan import selective_scan

HERE = [name for name, peer in PEERS.items() if "cpu" in peer.devices]
THERE = [name for name, peer in PEERS.items() if "cpu" not in peer.devices]
MIXER = {"in_proj.weight": "in_proj.weight", "conv_weight": "conv1d.weight", "conv_bias": "conv1d.bias", "x_proj.weight": "x_proj.weight", "dt_proj.weight": "dt_proj.weight", "dt_proj.bias": "dt_proj.bias",
         "A_log": "A_log", "D": "D", "out_proj.weight": "out_proj.weight"}
ATTENTION = {f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in (("qkv", "c_attn"), ("out", "c_proj")) for part in ("weight", "bias")}
FFT = {"in_proj.weight": "in_proj.weight", "conv_weight": "conv.weight", "conv_bias": "conv.bias", "ssm.log_dt": "log_dt", "ssm.A_log": "A_log", "ssm.A_imag": "A_imag", "ssm.C": "C", "ssm.D": "D",
       "out_proj.weight": "out_proj.weight"}


class DocumentedMamba(nn.Module):
    "A block of mamba-ssm or flash-linear-attention, by the names and arguments that they document, here with our scan."
    def __init__(self, d_model, d_state=16, d_conv=4, expand=2):
        super().__init__()
        self.rank, self.states, inner = -(-d_model // 16), d_state, expand * d_model
        self.in_proj, self.out_proj = nn.Linear(d_model, 2 * inner, bias=False), nn.Linear(inner, d_model, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1)
        self.x_proj, self.dt_proj = nn.Linear(inner, self.rank + 2 * d_state, bias=False), nn.Linear(self.rank, inner)
        self.A_log, self.D = nn.Parameter(torch.zeros(inner, d_state)), nn.Parameter(torch.ones(inner))

    def forward(self, x):
        u, z = self.in_proj(x).chunk(2, -1)
        u = nn.functional.silu(self.conv1d(u.mT)[..., :x.shape[1]].mT)
        dt, B, C = self.x_proj(u).split([self.rank, self.states, self.states], -1)
        return self.out_proj(selective_scan(u, dt @ self.dt_proj.weight.T, -self.A_log.exp(), B, C, self.D, z.contiguous(), self.dt_proj.bias, backend="loop"))


def documented_fla(rank):
    class Mamba(DocumentedMamba):
        def __init__(self, hidden_size=2048, state_size=16, conv_kernel=4, use_conv_bias=True, intermediate_size=2048, dt_rank="auto", use_bias=True, layer_idx=None):
            super().__init__(hidden_size, state_size, conv_kernel, intermediate_size // hidden_size)
            assert not use_bias and dt_rank == self.rank
        def forward(self, hidden_states): return super().forward(hidden_states), None, None
    if rank == "dt_rank": return Mamba
    class OldMamba(Mamba):
        def __init__(self, time_step_rank, hidden_size, state_size, conv_kernel, intermediate_size, use_bias, layer_idx):
            super().__init__(hidden_size, state_size, conv_kernel, True, intermediate_size, time_step_rank, use_bias)
    return OldMamba


@pytest.fixture
def packages(monkeypatch):
    modules = {"mamba_ssm": None, "mamba_ssm.modules": None, "mamba_ssm.modules.mamba_simple": DocumentedMamba, "fla": None, "fla.layers": documented_fla("dt_rank")}
    for name, cls in modules.items():
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        if cls: sys.modules[name].Mamba = cls


def give_weights(ours, theirs):
    "Copy the weights of our model into a peer, name by name; every parameter of the peer but GPT-2's unused embedding must get one."
    state, ours = theirs.state_dict(), dict(ours.state_dict())
    given = {}
    def give(old, new):
        value = ours.pop(old)
        if "conv" in new and value.ndim == 2: value = value[:, None]
        if any(part in new for part in ("c_attn.weight", "c_proj.weight", "c_fc.weight")): value = value.T  # transformers' Conv1D
        given[new] = value
    for part in ("weight", "bias"):
        for reader in ("read_in", "read_out"): give(f"{reader}.{part}", f"{reader}.{part}")
    gpt2, model = "body.model.wpe.weight" in state, "body.model.norm_f.weight" in state
    for name in [name for name in ours if not name.startswith("blocks.")]:
        part = name.split(".")[-1]
        give(name, {"positions": "body.model.wpe.weight"}.get(name) or f"body.{'model.ln_f' if gpt2 else 'model.norm_f' if model else 'last'}.{part}")
    for name in list(ours):
        _, index, rest = name.split(".", 2)
        i, part = int(index), rest.split(".")[-1]
        if gpt2:
            names = {"norm": ("ln_1", "ln_2")[i % 2], "qkv": "attn.c_attn", "out": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}
            give(name, f"body.model.h.{i // 2}.{names[rest.split('.')[0]]}.{part}")
        elif model: give(name, f"body.model.layers.{i}.norm.weight" if rest == "norm.weight" else f"body.model.layers.{i}.mixer.{MIXER[rest]}")
        elif rest.startswith("norm"): give(name, f"body.norms.{i}.{part}")
        else: give(name, f"body.mixers.{i}." + (FFT if "body.mixers.0.log_dt" in state else {**MIXER, **ATTENTION})[rest])
    assert not ours and set(given) == {name for name in state if "wte" not in name and "embeddings" not in name}
    theirs.load_state_dict(given, strict=False)


def config_of(name):
    model = {"transformers Mamba": "mamba_rms"}.get(name, PEERS[name].model)  # transformers' Mamba has RMS norms
    return architecture(model, d_in=4, n_layers=2, d_model=32, n_heads=4, n_points=7, d_state=6)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_with_our_weights_is_our_model(name, packages):
    config = config_of(name)
    ours, theirs = build_model(config, 3), build_peer(PEERS[name], config)
    give_weights(ours, theirs)
    draws = Draws(1)
    prompt = Prompt(draws.normal(3, 7, 4), draws.normal(3, 7), torch.ones(3, 7, dtype=torch.bool))
    with torch.no_grad(): expected, got = predict(ours, prompt), theirs(prompt.x, prompt.y)
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


def test_flash_linear_attention_by_its_older_names(packages, monkeypatch):
    monkeypatch.setattr(sys.modules["fla.layers"], "Mamba", documented_fla("time_step_rank"))
    assert sum(p.numel() for p in build_peer(PEERS["fla Mamba"], config_of("fla Mamba")).parameters()) == sum(p.numel() for p in build_model(config_of("fla Mamba"), 0).parameters())


@pytest.mark.parametrize("name", THERE)
def test_a_peer_that_is_missing_says_how_to_get_it(name, monkeypatch):
    for package in PEERS[name].packages: monkeypatch.setitem(sys.modules, package, None)
    assert "pip install" in PEERS[name].absence() and PEERS[name].packages[0].split(".")[0] in PEERS[name].absence()


def test_the_peers_of_a_cpu_are_here(): assert [PEERS[name].absence() for name in HERE] == [""] * len(HERE)


@pytest.mark.parametrize("name", HERE)
def test_the_plain_loop_learns_and_leaves_the_generator_alone(name):
    before = torch.get_rng_state()
    training = PlainTraining(PEERS[name], architecture(PEERS[name].model, d_in=2, n_layers=1, d_model=32, n_heads=2, n_points=6), 6, 32, lr=3e-3)
    first, *_, last = [sum(training.step() for _ in range(20)) for _ in range(4)]
    assert last < 0.9 * first and torch.equal(before, torch.get_rng_state())
    again = PlainTraining(PEERS[name], architecture(PEERS[name].model, d_in=2, n_layers=1, d_model=32, n_heads=2, n_points=6), 6, 32, lr=3e-3)
    assert sum(again.step() for _ in range(20)) == pytest.approx(first, rel=1e-5)


def test_the_plain_loop_is_released_loop():
    "Adam as PyTorch has it, one gradient clipped at the norm asked for, targets that are w.x."
    peer, config = PEERS["PyTorch S4-Mamba by FFT"], architecture("s4_mamba", d_in=3, n_layers=1, d_model=16, n_points=5)
    training = PlainTraining(peer, config, 5, 4, lr=1e-2, clip=0.5)
    assert type(training.optimiser) is torch.optim.Adam and not training.optimiser.defaults["fused"] and training.optimiser.defaults["foreach"] is None
    seen = {}
    training.model.register_forward_hook(lambda module, given, out: seen.update(xs=given[0], ys=given[1], out=out.detach()))
    loss = training.step()
    residual = torch.linalg.lstsq(seen["xs"], seen["ys"][..., None])
    assert seen["xs"].shape == (4, 5, 3) and (seen["xs"] @ residual.solution - seen["ys"][..., None]).abs().max() < 1e-4
    assert loss == pytest.approx((seen["out"] - seen["ys"]).square().mean().item())
    assert torch.stack([p.grad.norm() for p in training.model.parameters() if p.grad is not None]).norm() == pytest.approx(0.5, rel=1e-3)


def test_the_plain_loop_forgets_the_last_gradient():
    peer, config = PEERS["PyTorch S4-Mamba by FFT"], architecture("s4_mamba", d_in=3, n_layers=1, d_model=16, n_points=5)
    clean, poisoned = (PlainTraining(peer, config, 5, 4, lr=1e-2) for _ in range(2))
    for p in poisoned.model.parameters(): p.grad = torch.full_like(p, 1e3)
    assert [clean.step() for _ in range(3)] == [poisoned.step() for _ in range(3)]


def test_the_attention_of_a_hybrid_is_causal():
    config = config_of("transformers Mamba, attention")
    mixer, x = stack(attention)(config), Draws(2).normal(1, 6, 32)
    with torch.no_grad(): change = (mixer(x) - mixer(x + torch.eye(6)[4][:, None] * Draws(3).normal(32))).abs().amax((0, 2))
    assert (change[:4] == 0).all() and (change[4:] > 0).all()
