"""Transformer blocks against attention written out by hand, and what their parts promise."""

import math

import pytest
import torch
from torch import nn

from proxflow.errors import ArgumentError
from proxflow.nn.transformer import Attention, Block, Transformer, hidden_width, rotary, rotate


def filled(module, std=0.3):
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module.double().eval()


def root_mean_square(v, scale=None):
    normed = [x / math.sqrt(sum(y * y for y in v) / len(v) + 1e-6) for x in v]
    return normed if scale is None else [a * b for a, b in zip(normed, scale, strict=True)]


def dot(v, w):
    return sum(a * b for a, b in zip(v, w, strict=True))


def times(matrix, v):
    return [dot(row, v) for row in matrix]


def added(v, made, gate):
    return [a + g * b for a, b, g in zip(v, made, gate, strict=True)]


def silu(x):
    return x / (1 + math.exp(-x))


def turned(v, position, base):
    """Pairs as complex numbers, each times exp(i · position · frequency); positions of several axes share the pairs out."""
    half = len(v) // 2
    share = half // len(position)
    out = list(v)
    for k in range(half):
        frequency = base ** -((k % share) / share)
        angle = position[k // share] * frequency
        turn = complex(v[k], v[k + half]) * complex(math.cos(angle), math.sin(angle))
        out[k], out[k + half] = turn.real, turn.imag
    return out


def by_hand(block, x, positions, embedding, base):
    """A block in plain Python numbers: one example, token after token, head after head."""
    own = {name: tensor.tolist() for name, tensor in block.state_dict().items()}
    width, tokens, heads = len(x[0]), len(x), block.attention.heads
    size = width // heads

    def modulated(name, v):
        if embedding is None:
            return root_mean_square(v, own[f"{name}.norm.weight"]), [1.0] * width
        told = times(own[f"{name}.modulation.1.weight"], [silu(e) for e in embedding])
        told = [a + b for a, b in zip(told, own[f"{name}.modulation.1.bias"], strict=True)]
        scale, shift, gate = told[:width], told[width : 2 * width], told[2 * width :]
        return [n * (1 + s) + h for n, s, h in zip(root_mean_square(v), scale, shift, strict=True)], gate

    normed = [modulated("norm_attention", v) for v in x]
    projected = [times(own["attention.project_in.weight"], v) for v, _ in normed]
    mixed = [[0.0] * width for _ in x]
    for head in range(heads):
        at = slice(head * size, (head + 1) * size)
        query, key, value = ([p[k * width : (k + 1) * width][at] for p in projected] for k in range(3))
        query = [root_mean_square(q, own["attention.norm_query.weight"]) for q in query]
        key = [root_mean_square(k, own["attention.norm_key.weight"]) for k in key]
        query, key = ([turned(v, p, base) for v, p in zip(vs, positions, strict=True)] for vs in (query, key))
        for i in range(tokens):
            seen = range(i + 1) if block.attention.causal else range(tokens)
            weights = [
                math.exp(sum(a * b for a, b in zip(query[i], key[j], strict=True)) / math.sqrt(size)) for j in seen
            ]
            mixed[i][at] = [
                sum(w * value[j][n] for w, j in zip(weights, seen, strict=True)) / sum(weights) for n in range(size)
            ]
    attended = [times(own["attention.project_out.weight"], v) for v in mixed]
    x = [
        [a + g * b for a, b, g in zip(v, o, gate, strict=True)]
        for v, o, (_, gate) in zip(x, attended, normed, strict=True)
    ]
    out = []
    for v in x:
        normed_v, gate = modulated("norm_layer", v)
        hidden = times(own["layer.project_in.weight"], normed_v)
        half = len(hidden) // 2
        gated = [silu(a) * b for a, b in zip(hidden[:half], hidden[half:], strict=True)]
        made = times(own["layer.project_out.weight"], gated)
        out.append(added(v, made, gate))
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("embedding", [0, 6])
@pytest.mark.parametrize("axes", [1, 2])
def test_a_block_equals_one_written_out_by_hand(causal, embedding, axes):
    block = filled(Block(16, 2, embedding=embedding, hidden=12, causal=causal))
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 5, 16, generator=generator, dtype=torch.float64)
    positions = torch.rand(5, axes, generator=generator, dtype=torch.float64) * 9
    told = torch.randn(2, embedding, generator=generator, dtype=torch.float64) if embedding else None
    found = block(x, rotary(positions, 8, 50.0), told)
    for k in range(2):
        wanted = by_hand(block, x[k].tolist(), positions.tolist(), None if told is None else told[k].tolist(), 50.0)
        torch.testing.assert_close(found[k], torch.tensor(wanted, dtype=torch.float64), rtol=1e-11, atol=1e-11)


def test_rotary_positions_are_relative_and_keep_lengths():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 7, 16, generator=generator, dtype=torch.float64)
    for axes in (1, 2):
        positions = torch.randint(0, 20, (7, axes), generator=generator).double()

        def products(at):
            return rotate(query, rotary(at, 16)) @ rotate(key, rotary(at, 16)).T

        moved = positions + torch.tensor([3.0, -5.0], dtype=torch.float64)[:axes]
        torch.testing.assert_close(products(moved), products(positions))
        assert not torch.allclose(products(2 * positions), products(positions))
        torch.testing.assert_close(rotate(query, rotary(positions, 16)).norm(dim=1), query.norm(dim=1))
    assert torch.equal(rotate(query, rotary(torch.zeros(7), 16)), query)


def test_a_transformer_is_equivariant_without_a_mask_and_causal_with_one():
    x, told = torch.randn(1, 6, 16, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)
    positions, order = torch.arange(6.0, dtype=torch.float64), torch.tensor([3, 1, 5, 0, 4, 2])
    whole = filled(Transformer(16, 2, 2, embedding=4))
    torch.testing.assert_close(whole(x[:, order], positions[order], told), whole(x, positions, told)[:, order])
    causal = filled(Transformer(16, 2, 2, causal=True))
    torch.testing.assert_close(causal(x[:, :4], positions[:4]), causal(x, positions)[:, :4])
    changed = x.clone()
    changed[:, 0] += 1
    assert ((causal(changed, positions) - causal(x, positions)).abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize("embedding", [0, 4])
def test_fresh_blocks_return_their_input_and_every_parameter_learns(embedding):
    block = Block(16, 2, embedding=embedding)
    x, told = torch.randn(2, 5, 16), torch.randn(2, embedding) if embedding else None
    assert torch.equal(block(x, rotary(torch.arange(5), 8), told), x)
    net = filled(Transformer(16, 2, 2, embedding=embedding))
    net(x.double(), torch.arange(5), None if told is None else told.double()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_as_many_weights_as_plain_layers():
    for width in (384, 768, 1024, 1152):
        plain = 8 * width**2
        assert abs(3 * width * hidden_width(width) - plain) < 0.002 * plain


@pytest.mark.parametrize("causal", [False, True])
def test_low_precision_and_compilation(causal):
    torch.manual_seed(0)
    net = filled(Transformer(16, 2, 2, embedding=4, causal=causal), 0.1).float()
    x, at, told = torch.randn(3, 5, 16), torch.arange(5), torch.randn(3, 4)
    plain = net(x, at, told)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net(x, at, told)
    assert rounded.dtype == torch.float32  # the sum over blocks is not rounded
    torch.testing.assert_close(rounded, plain, rtol=0, atol=0.1)
    assert net.bfloat16()(x.bfloat16(), at, told.bfloat16()).dtype == torch.bfloat16
    net.float()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, at, told), net(x, at, told))


def test_sizes_that_do_not_divide_and_embeddings_out_of_place():
    with pytest.raises(ArgumentError, match="its heads divide, got 16 and 3 heads"):
        Attention(16, 3)
    with pytest.raises(ArgumentError, match="along 2 axes need heads of a multiple of 4, got 6"):
        rotary(torch.zeros(3, 2), 6)
    with pytest.raises(ArgumentError, match="depth ≥ 1"):
        Transformer(16, 0, 2)
    x, at = torch.zeros(1, 3, 16), torch.arange(3)
    with pytest.raises(ArgumentError, match="adapt to an embedding: give one"):
        Transformer(16, 1, 2, embedding=4)(x, at)
    with pytest.raises(ArgumentError, match="adapt to no embedding"):
        Transformer(16, 1, 2)(x, at, torch.zeros(1, 4))
