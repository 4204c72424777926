"""The losses against float64 numpy and finite differences."""
# ruff: noqa: E402

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import oracle
from tessera_fast.training import losses

N, P = 7, 5
WIDTHS = (P, 11)  # narrower and wider than a batch


def draw(seed, shape=(N, P)):
    return np.random.default_rng(seed).standard_normal(shape)


def standardized(z):
    """Column by column, in float64."""
    out = np.empty_like(z)
    for j in range(z.shape[1]):
        column = z[:, j] - sum(z[:, j]) / len(z)
        out[:, j] = column / np.sqrt(sum(column**2) / len(z) + 1e-5)
    return out


def correlation(u, v):
    c = np.zeros((u.shape[1], v.shape[1]))
    for i in range(u.shape[1]):
        for j in range(v.shape[1]):
            c[i, j] = sum(u[n, i] * v[n, j] for n in range(len(u))) / len(u)
    return c


def barlow(z1, z2):
    c = correlation(standardized(z1), standardized(z2))
    total = 0.0
    for i in range(len(c)):
        for j in range(len(c)):
            total += (c[i, j] - 1) ** 2 if i == j else 5e-3 * c[i, j] ** 2
    return total


ORDER, SHARE = np.array([3, 0, 6, 1, 2, 5, 4]), 0.3


def mixup(z1, z2, zm):
    z1, z2, zm = standardized(z1), standardized(z2), standardized(zm)
    total = 0.0
    for view in (z1, z2):
        truth = SHARE * correlation(z1, view) + (1 - SHARE) * correlation(z2[ORDER], view)
        total += ((correlation(zm, view) - truth) ** 2).sum()
    return 5e-3 * total


def imitation(student, teacher):
    cosines = [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(student, teacher, strict=True)]
    return 1 - np.mean(cosines) + ((student - teacher) ** 2).mean() / (teacher**2).mean()


def torch_barlow(z1, z2):
    return losses.barlow_twins(losses.standardized(z1), losses.standardized(z2))


def torch_mixup(*z):
    order, share = torch.from_numpy(ORDER), torch.tensor(SHARE, dtype=torch.float64)
    return losses.mixup(*map(losses.standardized, z), order, share)


CASES = {
    "barlow": (barlow, torch_barlow, 2),
    "mixup": (mixup, torch_mixup, 3),
    "imitation": (imitation, losses.imitation, 2),
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", CASES)
def test_a_loss_is_its_formula(name, width):
    truth, loss, count = CASES[name]
    inputs = [draw(seed, (N, width)) for seed in range(count)]
    got = loss(*map(torch.from_numpy, inputs))
    oracle.assert_op(np.array([got.item()]), np.array([truth(*inputs)]))
    assert got.item() > 0.01


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_finite_differences(name, width):
    _, loss, count = CASES[name]
    inputs = [torch.from_numpy(draw(seed, (N, width))).requires_grad_() for seed in range(count)]
    assert torch.autograd.gradcheck(loss, inputs)


def test_equal_views_leave_the_redundancy_alone():
    z = losses.standardized(torch.from_numpy(draw(0, (400, P))))
    c = torch.from_numpy(correlation(z.numpy(), z.numpy()))
    off = c - torch.diag(c.diagonal())
    assert losses.barlow_twins(z, z) < losses.OFF_DIAGONAL * off.square().sum() * 1.01
    assert losses.barlow_twins(z, -z) > 3.9 * P


def test_a_constant_column_is_finite():
    z = torch.ones(N, P, requires_grad=True)
    losses.barlow_twins(losses.standardized(z), losses.standardized(z)).backward()
    assert torch.isfinite(z.grad).all()


def test_fake_int8_is_what_is_stored_and_passes_the_gradient():
    from tessera_fast.quantization import dequantize
    from tessera_fast.reference import ops
    from tessera_fast.spec import released

    e = torch.from_numpy(draw(1).astype(np.float32)).requires_grad_()
    fake = losses.fake_int8(e)
    codes, scales = ops.quantize(e.detach(), released("v2-nano"))
    stored = dequantize(codes.numpy(), scales.numpy())
    oracle.assert_op(fake.detach().numpy(), stored)
    assert not torch.equal(fake, e)
    fake.backward(torch.from_numpy(draw(2).astype(np.float32)))
    assert np.array_equal(e.grad.numpy(), draw(2).astype(np.float32))


def test_rankme_counts_directions():
    directions = torch.linalg.qr(torch.from_numpy(draw(3, (64, 8))))[0]
    assert round(losses.rankme(directions), 3) == 1
    two = directions[:, :2] @ torch.eye(2, 8).double()
    assert round(losses.rankme(two), 3) == round(np.log(2) / np.log(8), 3)
