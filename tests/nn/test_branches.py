"""Layers in the branches of `torch.cond` and in torch's loops, which Dynamo traces even where nothing is compiled."""

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch._higher_order_ops import scan, while_loop  # noqa: E402

from lumina_onnx.nn import calibrate, convert, noise  # noqa: E402
from lumina_onnx.profile import OpticalProfile  # noqa: E402

# More than one, since Dynamo does not treat as a constant what differs from one model to the next.
PROFILES = [
    OpticalProfile(weight_bits=4, noise_additive=0.05, output_range=2.0),
    OpticalProfile(weight_bits=2, noise_relative=0.1, noise_additive=0.2, output_range=(1.0, 2.0, 3.0, 4.0)),
]


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.yes, self.no = (nn.Linear(4, 4) for _ in range(3))
        self.in_python = False

    def on(self, x: Any) -> Any:
        return self.yes(x)

    def off(self, x: Any) -> Any:
        return self.no(x) * self.no(x)

    def forward(self, x: Any) -> Any:
        x = self.first(x)
        if self.in_python:
            return self.on(x) if x.sum() > 0 else self.off(x)
        return torch.cond(x.sum() > 0, self.on, self.off, (x,))


class While(Branches):
    def forward(self, x: Any) -> Any:
        return while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, self.yes(x)), (torch.tensor(0), x))[1]


class Scan(Branches):
    def forward(self, x: Any) -> Any:
        def step(carry: Any, row: Any) -> Any:
            y = self.yes(carry) + row
            return y, y.clone()

        return scan(step, x[0], x)[1]


def data() -> Any:
    return torch.randn(32, 4, generator=torch.Generator().manual_seed(1))


def model(kind: Any, profile: OpticalProfile) -> Any:
    torch.manual_seed(0)
    return convert(kind(), profile, inplace=True)


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[Any]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_training_under_a_fixed_stream(backend: str | None) -> None:
    def step(net: Any, run: Any, x: Any) -> Any:
        net.zero_grad()
        y = run(x)
        y.square().sum().backward()
        return [y.detach(), *(torch.zeros(()) if p.grad is None else p.grad.clone() for p in net.parameters())]

    for profile in PROFILES:
        net = model(Branches, profile)
        run = net if backend is None else torch.compile(net, backend=backend)
        for x in (data(), -data()):
            for on in (True, False):
                with noise(net, on, stream=3 if on else None):
                    net.in_python = True
                    expected = step(net, net, x)
                    net.in_python = False
                    found = step(net, run, x)
                # A branch that was not taken has no gradient, or a gradient of zeros.
                for ours, theirs in zip(found, expected, strict=True):
                    assert torch.equal(ours, theirs) or not (ours.any() or theirs.any())


@pytest.mark.parametrize("kind", [Branches, While, Scan])
def test_training_with_noise_that_is_drawn_is_refused_in_words(kind: Any) -> None:
    net = model(kind, PROFILES[0])
    message = r"torch.cond and its like compute their branches anew .*nn\.noise\(model, True, stream=step\)"
    with pytest.raises(RuntimeError, match=message):
        net(data()).sum().backward()


@pytest.mark.parametrize("kind", [Branches, While, Scan])
def test_noise_is_drawn_where_nothing_trains(kind: Any) -> None:
    net, x = model(kind, PROFILES[0]), data()
    with torch.no_grad():
        torch.manual_seed(3)
        first, second = net(x), net(x)
        assert not torch.equal(first, second)
        torch.manual_seed(3)
        assert torch.equal(net(x), first)
    with torch.no_grad(), noise(net):
        assert torch.equal(net(x), net(x))


@pytest.mark.parametrize("backend", [None, "aot_eager", "inductor"])
def test_equal_calls_in_a_branch_draw_apart(backend: str | None) -> None:
    net, x = model(Branches, PROFILES[0]), data()
    net.on = net.off = lambda x: torch.stack([net.yes(x), net.yes(x)])
    run = net if backend is None else torch.compile(net, backend=backend)
    with torch.no_grad():
        first, second = run(x)
    assert not torch.equal(first, second)


@pytest.mark.filterwarnings("ignore:calibrate. never called:UserWarning")
@pytest.mark.parametrize("kind", [Branches, While, Scan])
def test_calibration_sees_each_call(kind: Any) -> None:
    net, x = model(kind, PROFILES[0]), data()
    seen = {row.name: row.values for row in calibrate(net, [x, -x], progress=False).layers if row.values}
    calls = {Branches: {"first": 2, "yes": 1, "no": 2}, While: {"yes": 6}, Scan: {"yes": 2}}[kind]
    if kind is Branches:
        with torch.no_grad(), noise(net):
            taken = [bool(net.first(each).sum() > 0) for each in (x, -x)]
        calls = {"first": 2, "yes": sum(taken), "no": 2 * (2 - sum(taken))}
    assert seen == {name: count * x.numel() for name, count in calls.items() if count}
