"""Losses of batches of texts are those of each text alone, and what texts share is read once."""

import peft
import pytest
import torch

from osora_bench.evaluation.scorer import Scorer
from osora_bench.evaluation.token_trees import grow
from osora_bench.osora import OsoraConfig
from tests.evaluation.families import FAMILIES, family

PREFIX = (5, 9, 4, 11)


def questions(prefix=PREFIX, n=6, options=4, seed=1):
    """Texts label by label, as OpenCompass asks: of each question one with every answer. Some
    answers begin alike, some questions too."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(low, high):
        count = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(8, 50, (count,), generator=generator).tolist()

    contexts = [tokens(3, 20) for _ in range(n)]
    contexts[1] = [*contexts[0][:2], *contexts[1]]
    begin = tokens(2, 3)
    ends = [[tokens(1, 9), [*begin, *tokens(1, 4)]][k % 2] for k in range(options)]
    return [[*prefix, *context, *end] for end in ends for context in contexts]


def scored(model, texts, memory=1 << 30, most_rows=64):
    found = {}
    scorer = Scorer(model, pad_id=0, memory=memory, most_rows=most_rows)
    scorer.losses(texts, found.__setitem__)
    assert sorted(found) == list(range(len(texts)))
    return [found[i] for i in range(len(texts))]


def alone(model, text):
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([text])).logits[0].float()
    wanted = torch.tensor(text[1:], dtype=torch.long)
    return torch.nn.functional.cross_entropy(logits[:-1], wanted, reduction="none")


TEXTS = {
    "label by label": questions(),
    "without a common beginning": questions(prefix=()),
    "two options": questions(options=2, seed=3),
    "the same twice, and one that another goes on from": [
        [5, 6, 7],
        [5, 6, 7],
        [5, 6, 7, 8],
        [5, 6],
    ],
    "a single token": [[3], [5, 9], [5, 9, 3]],
    "one text": [[5, 9, 3, 8]],
    "none": [],
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("texts", TEXTS.values(), ids=TEXTS)
def test_losses_are_those_of_one_text_at_a_time(name, texts):
    model = family(name).double()
    for found, text in zip(scored(model, texts), texts, strict=True):
        torch.testing.assert_close(found, alone(model, text), atol=5e-6, rtol=5e-6)


@pytest.mark.parametrize("settings", [{"most_rows": 1}, {"most_rows": 3}, {"memory": 1}])
def test_losses_do_not_depend_on_the_batches(settings):
    model = family("window")
    whole = torch.cat(scored(model, questions()))
    torch.testing.assert_close(torch.cat(scored(model, questions(), **settings)), whole)


def test_in_bfloat16_they_are_as_far_from_the_exact_ones_as_one_text_at_a_time_is():
    exact, model = family("llama"), family("llama").bfloat16()
    with torch.no_grad():
        for rounded, parameter in zip(model.parameters(), exact.parameters(), strict=True):
            parameter.copy_(rounded)
    texts = questions(n=20)
    right = torch.cat([alone(exact, text) for text in texts])
    ours = (torch.cat(scored(model, texts)) - right).abs().mean()
    plain = (torch.cat([alone(model, text) for text in texts]) - right).abs().mean()
    assert plain > 1e-3
    assert ours < 1.5 * plain


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "lm_head"], use_dora=True),
        OsoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
        OsoraConfig(r=4, target_modules=["q_proj", "v_proj", "lm_head"], use_dora=True),
    ],
    ids=["DoRA, the output layer too", "OSoRA", "OSoRA with DoRA"],
)
def test_an_adapter_takes_part(config):
    base = family("llama").double()
    without = torch.cat(scored(base, questions()))
    adapted = peft.get_peft_model(base, config).eval().double()
    for name, parameter in adapted.named_parameters():
        if "osora_S" in name or "lora_B" in name:
            parameter.data += 0.5
    found = torch.cat(scored(adapted, questions()))
    assert (found - without).abs().max() > 0.1
    expected = torch.cat([alone(adapted, text) for text in questions()])
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=5e-6)


def test_what_texts_share_is_read_once_and_ends_need_no_logits():
    model, read, logits = family("llama"), [], []
    model.model.embed_tokens.register_forward_hook(lambda _, ids, out: read.append(ids[0].numel()))
    model.lm_head.register_forward_hook(lambda _, hidden, out: logits.append(out.shape[:-1]))
    texts = [[q, *range(10, 39), end, 7 + end] for q in (3, 4) for end in range(6)]
    scored(model, texts)
    assert read == [2 * (30 + 6 * 2)]
    assert logits == [(1, 2 * (30 + 6))]  # of the tokens that another follows, in one product


def test_trees_hold_every_text_and_are_no_larger_than_pays():
    texts = questions()
    trees = grow(texts, worth=10**9)
    assert [len(t) for t in trees] == [
        len({tuple(x[:k]) for x in texts for k in range(1, len(x) + 1)})
    ]
    for worth in (0, 1, 8, 10**9):
        trees = grow(texts, worth)
        found = {i: [t.tokens[p] for p in path] for t in trees for i, path in t.paths.items()}
        assert found == dict(enumerate(texts))
        assert [len(t) for t in trees] == sorted((len(t) for t in trees), reverse=True)
        for tree in trees:
            for path in tree.paths.values():
                seen = tree.ancestors()[path[-1]].nonzero()[:, 0].tolist()
                assert seen == path
                assert [tree.depths[p] for p in path] == list(range(len(path)))
    assert len(grow([[1, 2, 3], [1, 5, 6]], worth=0)) == 2
    assert grow([[1, 2], [1, 2], [1, 2, 3]], worth=0)[0].tokens == [1, 2, 3]


def test_a_model_that_makes_logits_elsewhere_is_noticed(monkeypatch):
    """A wrong loss would be worse than none."""
    model = family("llama")
    monkeypatch.setattr(model, "get_output_embeddings", lambda: torch.nn.Linear(1, 1))
    with pytest.raises(RuntimeError, match="makes other logits than asked for"):
        scored(model, questions())
