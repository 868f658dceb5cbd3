"""Released weights: the table says what torchvision says, files are what their names say, and nothing loads into the wrong net."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

import cnnlib
from cnnlib.models import pretrained
from cnnlib.models.pretrained import RENAMED, check_weights, load_pretrained, release, releases
from cnnlib.models.zoo import ZOO, papers

USUAL = [next(iter(releases(name))) for name in dict.fromkeys(row.model for row in releases())]
OTHERS = pretrained._table()["another_network"]


def named(row) -> str:
    return f"{row.model}-{row.weights}"


# --- the table


@pytest.mark.parametrize("row", releases(), ids=named)
def test_a_row_is_what_torchvision_says_of_its_weights(row):
    theirs = torchvision.models.get_weight(
        f"{torchvision.models.get_model_weights(row.torchvision).__name__}.{row.weights}"
    )
    assert row.url == theirs.url
    metrics = theirs.meta["_metrics"]["ImageNet-1K"]
    assert (row.top1, row.top5, row.megabytes) == (metrics["acc@1"], metrics["acc@5"], theirs.meta["_file_size"])
    preset = theirs.transforms()
    assert ([row.resize], [row.crop], row.interpolation) == (
        preset.resize_size,
        preset.crop_size,
        preset.interpolation.value,
    )
    assert (list(row.mean), list(row.std)) == (preset.mean, preset.std)


def test_the_images_are_prepared_as_torchvision_prepares_them():
    pixels = np.random.default_rng(0).integers(0, 256, (301, 417, 3), dtype=np.uint8)
    for row in (release("inception_v3"), release("vit_b_16", "IMAGENET1K_SWAG_LINEAR_V1")):
        theirs = torchvision.models.get_model_weights(row.torchvision)[row.weights].transforms()
        torch.testing.assert_close(row.transform()(Image.fromarray(pixels)), theirs(Image.fromarray(pixels)))


@pytest.mark.parametrize("row", USUAL, ids=named)
def test_torchvisions_network_has_the_keys_and_shapes_of_ours(row):
    options = {"aux_logits": True, "init_weights": False} if "transform_input" in row.options else {}
    with torch.device("meta"):
        theirs = getattr(torchvision.models, row.torchvision)(**options)
        ours = cnnlib.build(row.model, **row.options)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


def test_networks_into_which_a_release_would_load_are_listed_and_no_others():
    def shapes(name: str) -> dict:
        with torch.device("meta"):
            return {k: v.shape for k, v in cnnlib.build(name).state_dict().items()}

    counts = {row.name: papers()[row.name]["params"]["value"] for row in ZOO if "params" in papers().get(row.name, {})}
    fitting = set()
    for row in USUAL:
        rivals = [name for name, count in counts.items() if count == counts[row.model] and name != row.model]
        fitting |= {(name, row.model) for name in rivals if shapes(name) == shapes(row.model)}
    assert fitting == {(name, other["belongs_to"]) for name, other in OTHERS.items() if other["fits"]}
    assert ("resnet50", "resnet50_v1_5") in fitting


# --- whose weights


@pytest.mark.parametrize("name", OTHERS)
def test_a_network_whose_name_promises_anothers_weights_points_to_that_one(name, tmp_path):
    with pytest.raises(
        ValueError,
        match=rf"belong to '{OTHERS[name]['belongs_to']}'.*load_pretrained\('{OTHERS[name]['belongs_to']}'\)",
    ):
        load_pretrained(name, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert releases(OTHERS[name]["belongs_to"])


def test_a_network_without_released_weights_says_which_have_some():
    with pytest.raises(ValueError, match=r"no weights of 'densenet264'; it has of alexnet_owt, vgg_a, .*convnext_tiny"):
        load_pretrained("densenet264")
    with pytest.raises(ValueError, match="no model 'densenet12l'; did you mean 'densenet121'"):
        load_pretrained("densenet12l")
    with pytest.raises(
        ValueError, match="no release of resnet50_v1_5 called 'V2'; there are IMAGENET1K_V1, IMAGENET1K_V2"
    ):
        release("resnet50_v1_5", "V2")


def test_the_usual_names_find_the_same_weights():
    assert release("vgg16") == release("vgg_d")


def test_torchvisions_resnet50_is_refused_by_the_papers_net_although_every_key_fits():
    with torch.device("meta"):
        weights = torchvision.models.resnet50().state_dict()
        assert {k: v.shape for k, v in cnnlib.build("resnet50").state_dict().items()} == {
            k: v.shape for k, v in weights.items()
        }
    with pytest.raises(ValueError, match=r"fit 'resnet50' and 'resnet50_v1_5' alike: torchvision strides in the 3x3"):
        check_weights("resnet50", weights)
    with pytest.raises(ValueError, match=r"of 'resnet50_v1_5' and were asked to go into 'resnet50'"):
        check_weights("resnet50", weights, of="resnet50_v1_5")
    check_weights("resnet50", weights, of="resnet50")
    check_weights("resnet50_v1_5", weights)


def test_weights_that_do_not_fit_say_what_is_wrong_and_whose_they_are():
    with torch.device("meta"):
        weights = torchvision.models.resnet18().state_dict()
    unknown = r"do not fit 'plain18': 18 unknown \(layer2.0.downsample.0.weight\); they fit 'resnet18'"
    with pytest.raises(ValueError, match=unknown):
        check_weights("plain18", weights)
    weights["fc.weight"] = torch.empty(10, 512, device="meta")
    with pytest.raises(ValueError, match=r"1 of another shape \(fc.weight: 10x512, not 1000x512\); 'resnet18' takes"):
        check_weights("resnet18", weights)
    del weights["fc.weight"]
    with pytest.raises(ValueError, match=r"do not fit 'resnet18': 1 missing \(fc.weight\)"):
        check_weights("resnet18", weights)


def old_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As the released DenseNet and ViT files name them: `norm.1`, `linear_1`, and no count of batches."""
    old = {}
    for key, value in weights.items():
        for new, before in (
            (r".norm1.", ".norm.1."),
            (".norm2.", ".norm.2."),
            (".conv1.", ".conv.1."),
            (".conv2.", ".conv.2."),
        ):
            key = key.replace(new, before) if "denselayer" in key else key
        key = key.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2.")
        if not key.endswith("num_batches_tracked"):
            old[key] = value
    return old


@pytest.mark.parametrize("name", ["densenet121", "vit_b_16"])
def test_names_of_before_torchvision_renamed_them_are_understood(name):
    with torch.device("meta"):
        weights = getattr(torchvision.models, name)().state_dict()
    old = old_names(weights)
    assert not any(key in weights for key in old if any(pattern.search(key) for pattern, _ in RENAMED))
    assert any(pattern.search(key) for key in old for pattern, _ in RENAMED)
    check_weights(name, old)


# --- files and servers


class Server(http.server.BaseHTTPRequestHandler):
    files: dict[str, bytes] = {}  # noqa: RUF012 (one a test)

    def do_GET(self) -> None:
        body = self.files.get(self.path)
        if body == b"hang":
            threading.Event().wait(2)
            return
        self.send_response(200 if body is not None else 404)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch, tmp_path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """A server on this machine, its files, and a torch.hub folder of its own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    files: dict[str, bytes] = {}
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Server,), {"files": files}))
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}", files
    served.shutdown()
    thread.join()
    served.server_close()


def released(monkeypatch, name: str, body: bytes) -> str:
    """Pretend that the weights of `name` are these bytes; the name of their file."""
    row = replace(release(name), file=f"{name}-{hashlib.sha256(body).hexdigest()[:8]}.pth")
    monkeypatch.setattr(pretrained, "_all", lambda: (row,))
    return row.file


def scrambled(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.2)
    return model.eval()


def test_a_fetched_file_gives_torchvisions_logits_and_is_found_the_second_time(server, monkeypatch, tmp_path):
    address, files = server
    theirs = scrambled("densenet121")
    torch.save(old_names(theirs.state_dict()), tmp_path / "file")
    body = (tmp_path / "file").read_bytes()
    file = released(monkeypatch, "densenet121", body)
    files[f"/{file}"] = body
    folder = tmp_path / "weights"
    ours = load_pretrained("densenet121", address=address, folder=folder, progress=False)
    assert not ours.training
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    assert [path.name for path in folder.iterdir()] == [file]
    files.clear()
    load_pretrained("densenet121", address=address, folder=folder)
    # What torch.hub has fetched before is taken too, and a file:// address serves those who copied it by hand.
    hub = tmp_path / "hub" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    (folder / file).rename(hub / file)
    load_pretrained("densenet121", address=address, folder=folder)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    load_pretrained("densenet121", address=hub.as_uri(), folder=folder, progress=False)
    assert [path.name for path in folder.iterdir()] == [file]


def test_a_file_with_another_digest_is_refused_and_thrown_away(server, monkeypatch, tmp_path):
    address, files = server
    file = released(monkeypatch, "resnet18", b"the right bytes")
    files[f"/{file}"] = b"the wrong bytes"
    with pytest.raises(ValueError, match=rf"what {address}/{file} gave is not {file}: its sha256 does not begin with"):
        load_pretrained("resnet18", address=address, folder=tmp_path / "weights", progress=False)
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_damaged_file_on_disk_is_refused_before_it_is_read(server, monkeypatch, tmp_path):
    file = released(monkeypatch, "resnet18", b"the right bytes")
    (tmp_path / file).write_bytes(b"half of")
    with pytest.raises(ValueError, match=rf"{file} is damaged or another file: its sha256 should begin .*; delete it"):
        load_pretrained("resnet18", folder=tmp_path)


def fault(server, tmp_path: Path, address: str, reason: str) -> None:
    folder = tmp_path / "weights"
    with pytest.raises(FileNotFoundError, match=reason) as caught:
        load_pretrained("resnet18", address=address, folder=folder, progress=False)
    text = str(caught.value)
    row = release("resnet18")
    for part in (f"{address}/{row.file}", str(folder / row.file), "by hand", row.url, "45 MB", row.digest):
        assert part in text
    assert list(folder.iterdir()) == []


def test_without_a_network_the_error_says_what_was_tried_where_it_looked_and_what_to_do(server, tmp_path):
    fault(server, tmp_path, "http://127.0.0.1:1", "IMAGENET1K_V1 of 'resnet18' are not here and could not be fetched")


def test_a_file_that_the_server_does_not_have_is_such_an_error_too(server, tmp_path):
    fault(server, tmp_path, server[0], "404")


def test_a_silent_server_is_given_up(server, monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "PATIENCE", 0.2)
    server[1][f"/{release('resnet18').file}"] = b"hang"
    fault(server, tmp_path, server[0], "timed out")


def test_googlenet_and_inception_turn_imagenets_means_to_their_own():
    torch.manual_seed(0)
    theirs = torchvision.models.googlenet(transform_input=True, aux_logits=True, init_weights=False).eval()
    ours = cnnlib.build("googlenet_bn", **release("googlenet_bn").options).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
        ours.transform_input = False
        assert not torch.allclose(ours(x), theirs(x))
    assert release("inception_v3").options == {"transform_input": True}
