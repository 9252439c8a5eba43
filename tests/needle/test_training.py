"""The trainer's fast operators equal the reference, forwards and backwards; its sequences say what they should."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from examples.needle.checkpoint_writer import write_tokenizer
from examples.needle.geometry import CONFIG
from examples.needle.haystacks import answer_loss, answer_to, draw_batch
from examples.needle.operators import TrainingOperators
from examples.needle.pictures import MARKS
from examples.needle.pools import Pool
from examples.needle.scan import scan_from_zero
from examples.needle.schedule import warm_cosine
from examples.needle.task import NOTHING, QUESTIONS
from examples.needle.train import new_model
from longllava_trt.reference.cache import empty_cache
from longllava_trt.reference.model import LongLLaVA
from longllava_trt.reference.operators import ScanInputs, TorchOperators
from longllava_trt.reference.prompt import (
    IMAGE_TOKEN_INDEX,
    build_prompt,
    tokenize_prompt,
    wrap_images,
)
from longllava_trt.runtime.text.tokenizer import ChatTokenizer

NUM_HAY, PER_MARK = 40, 3


def scan_inputs(batch: int, length: int, channels: int, *, states: int, seed: int) -> ScanInputs:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    return ScanInputs(
        u=draw(batch, length, channels),
        dt=draw(batch, length, channels),
        A_log=draw(channels, states),
        B=draw(batch, length, states),
        C=draw(batch, length, states),
        D=draw(channels),
        z=draw(batch, length, channels),
        dt_bias=draw(channels),
        state=torch.zeros(batch, channels, states),
    )


@pytest.mark.parametrize(
    ("batch", "length", "channels", "states"),
    [(1, 1, 1, 1), (2, 37, 21, 16), (1, 130, 5, 16), (3, 7, 16, 3)],
)
def test_scan_equals_the_reference_and_its_gradient(
    batch: int, length: int, channels: int, states: int
) -> None:
    ours, theirs = (scan_inputs(batch, length, channels, states=states, seed=1) for _ in range(2))
    y, want = scan_from_zero(ours), TorchOperators().selective_scan(theirs)[0]
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    (y * weight).sum().backward()
    (want * weight).sum().backward()
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
    for name, mine, other in zip(ScanInputs._fields, ours, theirs, strict=True):
        if name != "state":
            assert mine.grad is not None
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_a_wrong_gradient_is_noticed() -> None:
    ours, theirs = (scan_inputs(1, 9, 4, states=16, seed=1) for _ in range(2))
    scan_from_zero(ours).sum().backward()
    TorchOperators().selective_scan(theirs._replace(D=theirs.D.detach()))[0].sum().backward()
    scaled = 1.01 * theirs.u.grad if theirs.u.grad is not None else None
    with pytest.raises(AssertionError):
        torch.testing.assert_close(ours.u.grad, scaled, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [2, 23])
def test_training_operators_are_the_model(length: int) -> None:
    trained, plain = new_model(3), LongLLaVA(CONFIG)
    plain.load_state_dict(trained.state_dict())
    embeds = torch.randn(2, length, 96, generator=torch.Generator().manual_seed(4))
    outputs = []
    for model in (trained, plain):
        output = model.decode(embeds, empty_cache(CONFIG.decoder, batch=2), all_logits=True)
        output.logits.square().sum().backward()
        outputs.append(output.logits)
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    others = dict(plain.named_parameters())
    for name, parameter in trained.named_parameters():
        assert (parameter.grad is None) == (others[name].grad is None), name
        if parameter.grad is not None:
            assert relative(parameter.grad, others[name].grad) < 1e-3, name


def relative(got: Tensor, want: Tensor | None) -> float:
    assert want is not None
    return float((got - want).norm() / want.norm().clamp(min=1e-6))


def test_vision_is_the_reference() -> None:
    trained, plain = new_model(3), LongLLaVA(CONFIG)
    plain.load_state_dict(trained.state_dict())
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(
        trained.encode_images(pixels), plain.encode_images(pixels), rtol=1e-4, atol=1e-4
    )


def test_balance_is_one_where_experts_are_used_evenly() -> None:
    experts = [e.weights for e in new_model(0).layers[1].feed_forward.experts]  # type: ignore[union-attr]
    ops = TrainingOperators()
    for share in (torch.eye(8).repeat(4, 1), torch.eye(8)[:1].repeat(32, 1)):
        two = share + share.roll(1, dims=1)
        ops.sparse_moe(torch.zeros(32, 96), 50 * two, experts, top_k=2)
    even, one_sided = (float(value.detach()) for value in ops.balance)
    assert even == pytest.approx(1, abs=1e-4)
    assert one_sided == pytest.approx(4, abs=1e-3)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, CONFIG.decoder.vocab_size)
    return ChatTokenizer(folder)


@pytest.fixture(scope="module")
def pool() -> Pool:
    rows = NUM_HAY + PER_MARK * len(MARKS)
    return Pool(torch.randn(rows, 4, 96, generator=torch.Generator().manual_seed(6)), NUM_HAY)


def test_pool_knows_its_marks(pool: Pool) -> None:
    rng = np.random.default_rng(0)
    labels = pool.labels
    for mark in range(len(MARKS)):
        rows = [pool.draw_marked(rng, mark) for _ in range(20)]
        assert set(labels[rows].tolist()) == {mark}
    assert set(labels[pool.draw_hay(rng, 100)].tolist()) == {len(MARKS)}


@pytest.mark.parametrize("num_images", [1, 2, 7])
def test_answers_are_about_the_pictures_shown_so_far(
    pool: Pool, tokenizer: ChatTokenizer, num_images: int
) -> None:
    batch = draw_batch(
        np.random.default_rng(1), pool, tokenizer, num_images=num_images, num_sequences=40
    )
    for ids, targets, pictures in zip(
        batch.input_ids.tolist(), batch.targets.tolist(), batch.pictures, strict=True
    ):
        labels = pool.labels[pictures].tolist()
        shown = 0
        answer: list[int] = []
        asked = ""
        for position, (token, target) in enumerate(zip(ids, targets, strict=True)):
            shown += token == IMAGE_TOKEN_INDEX
            if target == -100:
                continue
            if not answer:
                text = tokenizer.decode([t for t in ids[: position + 1] if t >= 0])
                asked = max(QUESTIONS, key=lambda kind: text.rfind(QUESTIONS[kind]))
            if target != CONFIG.eos_token_ids[0]:
                answer.append(target)
                continue
            marks = [MARKS[m] for m in labels[: shown // 4] if m < len(MARKS)]
            mark = marks[0] if marks else None
            assert tokenizer.decode(answer) == answer_to(asked, mark)
            answer = []
        assert shown == 4 * num_images


def test_the_first_turn_is_the_runtime_s_prompt(pool: Pool, tokenizer: ChatTokenizer) -> None:
    batch = draw_batch(np.random.default_rng(2), pool, tokenizer, num_images=3, num_sequences=20)
    prompts = []
    for question in QUESTIONS.values():
        ids = tokenize_prompt(build_prompt(wrap_images(question, num_images=3)), tokenizer)
        prompts.append([i for i in ids for _ in range(4 if i == IMAGE_TOKEN_INDEX else 1)])
    begins = [
        any(row[: len(prompt)] == prompt for prompt in prompts) for row in batch.input_ids.tolist()
    ]
    assert 0 < sum(begins) < 20, "half of the sequences show everything first"


def test_loss_is_that_of_the_reference_s_logits(pool: Pool, tokenizer: ChatTokenizer) -> None:
    model, plain = new_model(7), LongLLaVA(CONFIG)
    plain.load_state_dict(model.state_dict())
    batch = draw_batch(np.random.default_rng(3), pool, tokenizer, num_images=2, num_sequences=1)
    with torch.no_grad():
        loss, _ = answer_loss(model, pool.values, batch)
        ids = batch.input_ids[0]
        embeds = plain.embed(ids.clamp(min=0))
        images = plain.projector(pool.values[batch.pictures[0]]).flatten(0, 1)
        embeds[ids == IMAGE_TOKEN_INDEX] = images
        logits = plain.decode(embeds[None], empty_cache(CONFIG.decoder), all_logits=True).logits[0]
    targets = batch.targets[0]
    asked = (targets != -100).nonzero().flatten()
    want = -logits.log_softmax(-1)[asked, targets[asked]].mean()
    torch.testing.assert_close(loss, want, rtol=1e-4, atol=1e-4)


def test_nothing_is_the_answer_without_a_mark() -> None:
    assert {answer_to(kind, None) for kind in QUESTIONS} == {NOTHING}


@pytest.mark.parametrize("steps", [1, 4, 600])
def test_learning_rate_rises_to_its_peak_and_falls(steps: int) -> None:
    rates = [warm_cosine(step, steps=steps, peak=2.0) for step in range(steps)]
    assert max(rates) == pytest.approx(2.0)
    assert all(rate > 0 and math.isfinite(rate) for rate in rates)
    assert rates[-1] < 1 or steps < 10


def test_tokenizer_is_the_same_every_time(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "a", 512)
    write_tokenizer(tmp_path / "b", 512)
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
