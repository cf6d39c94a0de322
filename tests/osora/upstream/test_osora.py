"""OSoRA's own tests, as PEFT's tree has one file a method: no model hub, no GPU, and nothing of
this project but the import, which there is `from peft import OsoraConfig`.

The cases of CASES are in the form of the tables of PEFT's test_custom_models.py (name, model,
configuration class, settings), to be added to them as they stand.
"""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from torch import nn

try:
    from peft import OsoraConfig
except ImportError:
    from osora_bench.osora import OsoraConfig

CASES = [
    ("Vanilla MLP 1 OSoRA", "MLP", OsoraConfig, {"target_modules": "lin0", "r": 2}),
    ("Vanilla MLP 2 OSoRA", "MLP", OsoraConfig, {"target_modules": ["lin0"], "r": 2}),
    ("Vanilla MLP 3 OSoRA", "MLP", OsoraConfig, {"target_modules": ["lin1"], "r": 2}),
    ("Vanilla MLP 4 OSoRA", "MLP", OsoraConfig, {"target_modules": ["lin0", "lin1"], "r": 2}),
    (
        "Vanilla MLP 5 OSoRA",
        "MLP",
        OsoraConfig,
        {"target_modules": ["lin0"], "modules_to_save": ["lin1"], "r": 2},
    ),
    (
        "Vanilla MLP 6 OSoRA with DoRA",
        "MLP",
        OsoraConfig,
        {"target_modules": ["lin0"], "r": 2, "use_dora": True},
    ),
    (
        "Vanilla MLP 7 OSoRA, O on the input",
        "MLP",
        OsoraConfig,
        {"target_modules": ["lin0"], "r": 2, "o_side": "input"},
    ),
    (
        "Vanilla MLP 8 OSoRA, gaussian O",
        "MLP",
        OsoraConfig,
        {"target_modules": ["lin0"], "r": 2, "o_init": "gaussian"},
    ),
]
"""Beside them, MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES takes the same layer twice and two layers, with
`init_weights=False`, and the decoder, encoder-decoder and feature-extraction tables one line each:
`(OsoraConfig, {"task_type": ..., "target_modules": None, "r": 2})`."""


class MLP(nn.Module):
    def __init__(self, bias: bool = True):
        super().__init__()
        self.lin0 = nn.Linear(10, 20, bias=bias)
        self.relu = nn.ReLU()
        self.lin1 = nn.Linear(20, 2, bias=bias)

    def forward(self, x):
        return self.lin1(self.relu(self.lin0(x)))


class TestOsora:
    @pytest.fixture
    def mlp(self):
        torch.manual_seed(0)
        return MLP()

    @pytest.fixture
    def x(self):
        torch.manual_seed(1)
        return torch.randn(5, 10)

    @pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
    def test_starts_as_identity_trains_and_round_trips(self, case, mlp, x, tmp_path):
        _, _, config_cls, settings = case
        base = copy.deepcopy(mlp)
        before = mlp(x)
        model = get_peft_model(mlp, config_cls(**settings)).eval()
        assert torch.equal(model(x), before)

        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for _ in range(3):
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        after = model(x)
        assert not torch.allclose(after, before)

        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(base, tmp_path).eval()
        torch.testing.assert_close(loaded(x), after)
        with loaded.disable_adapter():
            torch.testing.assert_close(loaded(x), before)
        torch.testing.assert_close(loaded.merge_and_unload()(x), after)

    @pytest.mark.parametrize("r", [1, 7, 10])
    def test_number_of_trainable_parameters(self, mlp, r):
        model = get_peft_model(mlp, OsoraConfig(target_modules=["lin0"], r=r))
        trainable, _ = model.get_nb_trainable_parameters()
        assert trainable == r + mlp.lin0.out_features

    def test_init_weights_false_is_no_identity(self, mlp, x):
        before = mlp(x)
        config = OsoraConfig(target_modules=["lin0"], r=4, init_weights=False)
        assert not torch.allclose(get_peft_model(mlp, config)(x), before)

    def test_singular_values_are_those_of_the_weight(self, mlp):
        expected = torch.linalg.svdvals(mlp.lin0.weight.detach())[:4]
        model = get_peft_model(mlp, OsoraConfig(target_modules=["lin0"], r=4))
        torch.testing.assert_close(model.base_model.model.lin0.osora_S["default"].data, expected)

    def test_frozen_vectors_stay_frozen(self, mlp):
        config = OsoraConfig(target_modules=["lin0"], r=4, train_s=False)
        model = get_peft_model(mlp, config)
        model.set_adapter("default")
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        assert names == ["base_model.model.lin0.osora_O.default"]

    def test_other_base_weights_are_refused(self, mlp, tmp_path):
        get_peft_model(mlp, OsoraConfig(target_modules=["lin0"], r=4)).save_pretrained(tmp_path)
        torch.manual_seed(2)
        with pytest.raises(ValueError, match="trained on other base weights"):
            PeftModel.from_pretrained(MLP(), tmp_path)

    def test_rank_too_large_raises(self, mlp):
        with pytest.raises(ValueError, match=r"rank 11 is too large for lin0 .* at most 10"):
            get_peft_model(mlp, OsoraConfig(target_modules=["lin0"], r=11))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("autocast", [True, False])
    def test_autocast_adapter_dtype(self, mlp, dtype, autocast):
        config = OsoraConfig(target_modules=["lin0"], r=4)
        model = get_peft_model(mlp.to(dtype), config, autocast_adapter_dtype=autocast)
        kinds = {p.dtype for n, p in model.named_parameters() if "osora_" in n}
        assert kinds == {torch.float32 if autocast else dtype}

    def test_inject_adapter_in_model(self, mlp, x):
        before = mlp(x)
        model = inject_adapter_in_model(OsoraConfig(target_modules=["lin0"], r=4), mlp)
        assert torch.equal(model(x), before)
        assert any("osora_S" in name for name, _ in model.named_parameters())

    def test_beside_another_method_on_another_layer(self, mlp, x):
        plain = mlp(x)
        lora = LoraConfig(target_modules=["lin1"], r=2, init_lora_weights=False)
        model = inject_adapter_in_model(lora, mlp, "lora")
        with_lora = model(x)
        assert not torch.allclose(with_lora, plain)
        osora = OsoraConfig(target_modules=["lin0"], r=2)
        model = inject_adapter_in_model(osora, model, "osora")
        assert torch.equal(model(x), with_lora)

        model.lin0.osora_S["osora"].data.mul_(2)
        hidden = x @ (model.lin0.base_layer.weight + model.lin0.get_delta_weight("osora")).T
        hidden = model.relu(hidden + model.lin0.base_layer.bias)
        update = model.lin1.get_delta_weight("lora")
        expected = model.lin1.base_layer(hidden) + hidden @ update.T
        torch.testing.assert_close(model(x), expected)
        model(x).sum().backward()
        assert model.lin0.osora_S["osora"].grad is not None
