"""The door to optimum.habana, on a host without a Gaudi. Imports happen in processes of their own."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from asr import gaudi


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=env, timeout=200)


@pytest.mark.slow
@pytest.mark.optimum_habana
def test_the_real_trainer_comes_without_pip_on_the_path(tmp_path):
    """A path with a shell and nothing else: optimum-habana asks `pip list` for its plugin's version."""
    (tmp_path / "sh").symlink_to("/bin/sh")
    done = run_python(
        "import logging, sys, subprocess; logging.basicConfig(level=logging.INFO)\n"
        "from asr import gaudi\n"
        "run = subprocess.run\n"
        "assert gaudi.trainer_class().__module__ == 'optimum.habana.transformers.trainer'\n"
        "assert subprocess.run is run\n"
        "gaudi.optimum_habana(); gaudi.trainer_class()\n"
        "from asr import engines, topology\n"
        "args = engines.engine('gaudi').training_arguments({'output_dir': 'x'}, topology.Topology())\n"
        "print(args.device, 'habana_frameworks' in sys.modules)\n"
        "import optimum.habana.transformers.trainer as t; print(t.get_hpu_memory_stats(args.device))\n"
        "try:\n    import habana_frameworks\nexcept ImportError:\n    print('absent')\n",
        PATH=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["cpu False", "{}", "absent"]
    assert done.stderr.count("habana_frameworks is absent") == 1
    assert "hl-smi" not in done.stderr


@pytest.mark.slow
@pytest.mark.optimum_habana
def test_a_host_that_has_habana_frameworks_is_left_alone(tmp_path):
    """With the package there, optimum-habana's own question is asked, and fails as it would anywhere without the plugin."""
    (tmp_path / "habana_frameworks").mkdir()
    (tmp_path / "habana_frameworks" / "__init__.py").write_text("")
    done = run_python(
        "import logging; logging.basicConfig(level=logging.INFO)\n"
        "from asr import gaudi\n"
        "print(gaudi.habana_is_installed())\n"
        "try:\n    gaudi.optimum_habana()\nexcept IndexError:\n    print('its own question')\n",
        PYTHONPATH=f"{tmp_path}:{ROOT}",
    )
    assert done.stdout.split("\n")[:2] == ["True", "its own question"], done.stderr
    assert "is absent" not in done.stderr


PLUGIN = {
    "torch/hpu.py": "import os\ndef get_device_name():\n    return os.environ['DEVICE_NAME']\n",
    "torch/hpex/kernels.py": "import torch\nclass CTCLoss(torch.autograd.Function):\n    pass\n",
}
"""What asr.gaudi.ctc_kernel asks of habana_frameworks."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "files", "kernel", "said"),
    [
        ("GAUDI", PLUGIN, False, ""),
        ("GAUDI2", PLUGIN, True, "CTC loss: Habana's kernel on GAUDI2"),
        ("GAUDI3", PLUGIN, True, "CTC loss: Habana's kernel on GAUDI3"),
        ("GAUDI3", ["torch/hpu.py"], False, "CTC loss: torch's, since this habana_frameworks has no kernel for GAUDI3"),
    ],
)
def test_the_ctc_kernel_is_taken_where_there_is_one(tmp_path, device, files, kernel, said):
    for folder in ("", "torch", "torch/hpex"):
        (tmp_path / "habana_frameworks" / folder).mkdir()
        (tmp_path / "habana_frameworks" / folder / "__init__.py").write_text("")
    for name in files:
        (tmp_path / "habana_frameworks" / name).write_text(PLUGIN[name])
    done = run_python(
        "import logging; logging.basicConfig(level=logging.INFO, format='%(message)s')\n"
        "from asr import gaudi\n"
        "found = gaudi.ctc_kernel()\n"
        "if found is not None:\n"
        "    from habana_frameworks.torch.hpex.kernels import CTCLoss\n"
        "    assert found == CTCLoss.apply\n"
        "print(found is not None)\n",
        PYTHONPATH=f"{tmp_path}:{ROOT}",
        DEVICE_NAME=device,
    )
    assert done.stdout.split() == [str(kernel)], done.stderr
    assert done.stderr.partition(" (")[0].strip() == said


def test_without_the_extra_the_message_says_what_to_install():
    done = run_python(
        "import sys; sys.modules['optimum'] = type(sys)('optimum'); sys.modules['optimum'].__spec__ = object()\n"
        "sys.modules['optimum'].__path__ = []\n"
        "from asr import gaudi\nfrom asr.errors import ConfigError\n"
        "try:\n    gaudi.optimum_habana()\nexcept ConfigError as error:\n    print(error)\n"
    )
    assert "asr-gaudi[gaudi]" in done.stdout, done.stderr
    assert "trainer.engine=transformers" in done.stdout


@pytest.mark.optimum_habana
def test_the_gaudi_config_is_the_library_s():
    built = gaudi.GaudiConfig(use_fused_adam=True, autocast_bf16_ops=["add"]).build()
    assert type(built).__module__ == "optimum.habana.transformers.gaudi_configuration"
    assert (built.use_fused_adam, built.use_fused_clip_norm, built.autocast_bf16_ops) == (True, False, ["add"])


REFUSED = [{name: True} for name in "use_hpu_graphs_for_training use_hpu_graphs fp16 fp16_full_eval tf32".split()]
REFUSED += [{"max_hpu_graphs": 5}, {"mp_parameters": "a"}, {"use_cpu": False}, {"deepspeed": {"zero_optimization": {"stage": 2}}}]


@pytest.mark.optimum_habana
@pytest.mark.parametrize("arguments", REFUSED, ids=str)
def test_what_asr_compatibility_says_is_refused_is_refused(arguments, tmp_path):
    on_cpu = {"output_dir": str(tmp_path), "use_cpu": True, "use_habana": False, "use_lazy_mode": False, "report_to": "none"}
    made = gaudi.optimum_habana().GaudiTrainingArguments
    with pytest.raises((ValueError, TypeError, AssertionError, ImportError)):
        made(**{**on_cpu, **arguments})
    made(**on_cpu)


def test_cpu_ranks_train_one_model(monkeypatch):
    """GaudiAccelerator wraps models in DDP on HPUs alone."""
    from accelerate.utils import DistributedType

    class Wrapped(torch.nn.Module):
        def __init__(self, model, **options):
            super().__init__()
            self.model, self.options = model, options

    def accelerator(kind):
        handler = SimpleNamespace(to_kwargs=lambda: {"find_unused_parameters": True})
        made = SimpleNamespace(distributed_type=kind, ddp_handler=handler, _models=[])
        made.prepare_model = lambda model, **_: made._models.append(model) or model
        gaudi.average_gradients_on_cpu(made)
        return made

    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", Wrapped)
    model, several = torch.nn.Linear(1, 1), accelerator(DistributedType.MULTI_CPU)
    wrapped = several.prepare_model(model)
    assert (wrapped.model, wrapped.options, several._models) == (model, {"find_unused_parameters": True}, [wrapped])
    assert several.prepare_model(model, evaluation_mode=True) is model
    assert accelerator(DistributedType.MULTI_HPU).prepare_model(model) is model


@pytest.mark.optimum_habana
def test_beams_reorder_a_cache_of_tuples_as_transformers_own_does():
    import torch
    from transformers.cache_utils import DynamicCache

    states = [(torch.randn(3, 2, 4, 5), torch.randn(3, 2, 4, 5)) for _ in range(2)]
    order = torch.tensor([2, 0, 0])
    model, cache, ours = torch.nn.Linear(1, 1), DynamicCache(), DynamicCache()
    for layer, (keys, values) in enumerate(states):
        cache.update(keys, values, layer)
        ours.update(keys, values, layer)
    cache.reorder_cache(order)
    gaudi.reorder_beams(model)
    assert model._reorder_cache(ours, order) is ours
    for reordered in (model._reorder_cache(tuple(states), order), ours.to_legacy_cache()):
        for layer, pair in zip(reordered, cache.to_legacy_cache(), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(layer, pair, strict=True))
