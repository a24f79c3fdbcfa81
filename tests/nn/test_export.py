"""`torch.export`, saved programs and AOTInductor: a noisy model stays noisy."""

import io
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from lumina_onnx.nn import OpticalLinear, _scope, calibrate, convert, frozen, noise  # noqa: E402
from lumina_onnx.nn.functional import optical_linear  # noqa: E402
from lumina_onnx.profile import OpticalProfile  # noqa: E402

NOISY = OpticalProfile(noise_additive=0.1)
X = torch.linspace(-1, 1, 24).reshape(4, 6)


def net() -> Any:
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), NOISY, inplace=True)
    calibrate(model, [torch.randn(64, 6)], progress=False)
    return model


def export(model: Any, strict: bool = False) -> Any:
    return torch.export.export(model, (X,), strict=strict)


def seeded(call: Any, *arguments: Any) -> Any:
    torch.manual_seed(7)
    return call(*arguments)


def assert_draws(program: Any, model: Any) -> None:
    """Asserts that `program` has new noise in each call and, with the same seed, the model's noise."""
    assert not torch.equal(program(X), program(X))
    assert torch.equal(seeded(program, X), seeded(model, X))


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[Any]:
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("strict", [True, False])
def test_export_traces_the_inference_operator(grad: bool, strict: bool) -> None:
    model = net().eval()
    dynamic = {0: torch.export.Dim("batch")}
    with torch.set_grad_enabled(grad):
        program = torch.export.export(model, (torch.randn(4, 6),), dynamic_shapes=(dynamic,), strict=strict)
    targets = [node.target for node in program.graph.nodes if "lumina" in str(node.target)]
    assert targets == [torch.ops.lumina.optical_linear.default] * 2
    calls = [node.args for node in program.graph.nodes if node.target in targets]
    assert [arguments[4] for arguments in calls] == [model[0].seed, model[2].seed]
    x = torch.randn(5, 6)
    assert torch.equal(seeded(program.module(), x), seeded(model, x))


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_program_draws(strict: bool) -> None:
    model = net()
    program = export(model, strict)
    assert_draws(program.module(), model)
    assert_draws(program.run_decompositions({}).module(), model)
    assert_draws(program.run_decompositions().module(), model)


def test_a_saved_program_draws() -> None:
    model = net()
    file = io.BytesIO()
    torch.export.save(export(model), file)
    file.seek(0)
    assert_draws(torch.export.load(file).module(), model)


def test_a_compiled_program_draws() -> None:
    model = net()
    assert_draws(torch.compile(export(model).module(), backend="aot_eager", fullgraph=True), model)


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_a_program_compiled_ahead_of_time_draws(tmp_path: Path) -> None:
    """The program draws other numbers than the model, since the compiler has its own generator."""
    with torch.no_grad():
        program = export(net())
        package = torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(tmp_path / "model.pt2"),
            inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0", "aot_inductor.precompile_headers": False},
        )
        compiled = torch._inductor.aoti_load_package(package)
        assert not torch.equal(compiled(X), compiled(X))
        assert torch.equal(seeded(compiled, X), seeded(compiled, X))
        deviations = torch.stack([compiled(X) - compiled(X) for _ in range(200)]).std(0)
        expected = torch.stack([program.module()(X) - program.module()(X) for _ in range(200)]).std(0)
    torch.testing.assert_close(deviations, expected, rtol=0.35, atol=0)


def test_two_calls_on_one_input_draw_apart() -> None:
    layer = OpticalLinear(6, 6, profile=NOISY)

    class Twice(nn.Module):
        def forward(self, x: Any) -> Any:
            return layer(x) - layer(x)

    program = export(Twice())
    for module in (program.module(), program.run_decompositions().module()):
        assert module(X).abs().max() > 0


def test_the_function_in_an_exported_program_draws() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 6))

        def forward(self, x: Any) -> Any:
            return optical_linear(x, self.weight, None, NOISY), optical_linear(x, self.weight, None, NOISY, stream=3)

    module = export(Model()).module()
    (drawn, fixed), (again, same) = module(X), module(X)
    assert not torch.equal(drawn, again)
    assert torch.equal(fixed, same)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(("on", "stream"), [(True, 3), (False, None), (True, None)])
def test_a_program_keeps_the_setting_that_it_was_exported_under(on: bool, stream: int | None, strict: bool) -> None:
    model = net()
    with noise(model, on, stream=stream), frozen(model):
        module = export(model, strict).module()
        if stream is None and on:
            assert_draws(module, model)
            return
        expected = model(X)
    assert torch.equal(module(X), expected)
    with noise(model, True, stream=8):
        assert torch.equal(module(X), expected)


@pytest.mark.parametrize("strict", [True, False])
def test_a_block_inside_an_exported_model(strict: bool) -> None:
    if strict and torch.__version__ < (2, 10):
        pytest.skip("strict export of torch 2.8 and 2.9 refuses a forward that sets a module's attribute")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: Any) -> Any:
            with noise(self.inner):
                return self.inner(x)

    model = Model()
    assert torch.equal(export(model, strict).module()(X), model(X))


@pytest.mark.parametrize("compiled", [False, True])
def test_an_exported_program_trains_as_the_model(compiled: bool) -> None:
    model = net()
    module = export(model).module()
    if compiled:
        module = torch.compile(module, backend="aot_eager", fullgraph=True)

    def gradients(call: Any, parameters: Any) -> Any:
        x = X.clone().requires_grad_()
        return torch.autograd.grad(seeded(call, x).square().sum(), [x, *parameters])

    expected = gradients(model, model.parameters())
    parameters = dict(model.named_parameters())
    named = dict(module.named_parameters())
    found = gradients(module, [named[name] for name in parameters] if not compiled else named.values())
    assert all(map(torch.equal, found, expected))


def test_a_capture_for_onnx_is_of_its_thread() -> None:
    model = net()
    found = []

    def elsewhere() -> None:
        found.append(export(model).module())

    with _scope.capturing():
        captured = export(model)
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert not any("randint" in str(node.target) for node in captured.graph.nodes)
    assert_draws(found[0], model)
    assert_draws(export(model).module(), model)


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning")
def test_torchs_own_onnx_export_names_ours(dynamo: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises(RuntimeError, match=r"call lumina_onnx\.exporter\.export\(model, args, path\)"):
        torch.onnx.export(net(), (X,), str(tmp_path / "model.onnx"), dynamo=dynamo)
