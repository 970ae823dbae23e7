"""attach, tried on models of timm and torchvision: what is cut, how deep, what stays equal, what trains.

Weights are random. Each model gets two even cuts; its logits are compared with those of
the untouched model, bit for bit, in evaluation mode; each truncated output with the whole net's; and a copy takes one
step of each method, in which a gradient reaches every weight and BatchNorm counts one batch. Models that compute their
weights (weight standardisation, Swin V2) are refused by live, which says so.

timm and torchvision are not needed by auxnet: pip install --no-deps timm torchvision (and pyyaml, huggingface_hub).
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from datetime import date
from functools import partial
from pathlib import Path

import torch
from torch import nn

import auxnet
from auxnet.backbones.cuts import even_cuts
from auxnet.cost import count_parameters
from auxnet.provenance import provenance

# A torchvision of PyPI beside a CPU build of torch lacks its compiled operators, and fails at import without their
# names. No model here uses them.
OPERATORS = torch.library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    OPERATORS.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

CNNS = """
torchvision: resnet18 resnext50_32x4d wide_resnet50_2 vgg11_bn densenet121 googlenet squeezenet1_0 mobilenet_v2
    mobilenet_v3_small mnasnet0_5 shufflenet_v2_x0_5 efficientnet_b0 regnet_y_400mf convnext_tiny
timm: resnet18 resnetv2_50 seresnet50 res2net50_26w_4s skresnet18 resnest14d vgg11_bn densenet121 xception41 dla34
    hrnet_w18_small cspresnet50 dpn68 ese_vovnet19b_dw hgnet_tiny repvgg_a0 mobilenetv3_small_100 efficientnet_b0
    tf_efficientnetv2_b0 mixnet_s ghostnet_100 rexnet_100 regnety_002 nf_resnet26 convnext_atto convnextv2_atto
    convmixer_768_32 inception_next_tiny poolformer_s12 fastvit_t8 repvit_m0_9 starnet_s1 mambaout_femto
"""
FIXED_SIZE = """
torchvision: inception_v3 alexnet vit_b_16 swin_t swin_v2_t maxvit_t
timm: vit_tiny_patch16_224 deit_tiny_patch16_224 swin_tiny_patch4_window7_224 swinv2_tiny_window8_256
    mixer_s16_224 resmlp_12_224 convit_tiny cait_xxs24_224 xcit_nano_12_p16_224 eva02_tiny_patch14_224 hiera_tiny_224
    pvt_v2_b0 levit_128s mobilevit_xxs edgenext_xx_small efficientformer_l1 efficientvit_b0 tiny_vit_5m_224 davit_tiny
    focalnet_tiny_srf gcvit_xxtiny nest_tiny caformer_s18 volo_d1_224
    twins_svt_small crossvit_tiny_240 coat_lite_tiny tnt_s_patch16_224 pit_ti_224 nasnetalarge
"""
METHODS = {
    "joint": auxnet.joint,
    "pairwise": auxnet.pairwise,
    "live": partial(auxnet.multiway, mode="live"),
    "frozen": partial(auxnet.multiway, mode="frozen"),
    "fused": partial(auxnet.multiway, mode="fused"),
}
CLASSES = 10


def models(text):
    """(library, name) of each model in a list."""
    library = ""
    for word in text.split():
        if word.endswith(":"):
            library = word[:-1]
        else:
            yield library, word


def build(library, name):
    torch.manual_seed(0)
    if library == "timm":
        import timm

        return timm.create_model(name, num_classes=CLASSES)
    import torchvision

    auxiliary = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, num_classes=CLASSES, **auxiliary)


def size_of(backbone, name, fixed):
    """Pixels a side: small where the model allows."""
    if not fixed:
        return 64
    own = getattr(backbone, "default_cfg", {}).get("input_size", (3, 299 if name == "inception_v3" else 224))[-1]
    return 256 if name == "swin_v2_t" else own


@torch.no_grad()
def equal_logits(backbone, net, images):
    """Whether the final output, and every truncated one, is what it was, to the bit."""
    logits = net(images)
    alone = all(torch.equal(net.truncate(k)(images), said) for k, said in enumerate(logits, start=1))
    return torch.equal(backbone(images), logits[-1]) and alone


def one_step(net, make, images, labels):
    """What is wrong after one step of a method on a copy of the net: "" if nothing is."""
    net = copy.deepcopy(net).train()
    for module in net.modules():
        if type(module).__name__ in ("DropPath", "StochasticDepth"):
            module.eval()  # with two images it may well drop a block for both, which then stands still
    # A bias before a BatchNorm has no gradient: only weights are looked at.
    weights = {name: p for name, p in net.named_parameters() if p.ndim > 1}
    with torch.no_grad():
        for p in net.parameters():
            if p.abs().max() < 1e-3:  # some branches and classifiers begin at nothing, and before them nothing moves
                p.normal_(std=0.05)
    method = make(net, partial(torch.optim.SGD, lr=0.01, momentum=0.9), net.loss_weights())
    losses = method.step(images, labels)
    if not losses.isfinite().all():
        return f"losses {losses.tolist()}"
    reached = set()
    for update in method.updates:
        for p, alias in zip(update.parameters, update.aliases, strict=True):
            first_gradient = update.optimizer.state[alias].get("momentum_buffer")
            if first_gradient is not None and first_gradient.any():
                reached.add(id(p))
    if missed := [name for name, p in weights.items() if id(p) not in reached]:
        return f"{len(missed)} of {len(weights)} weights got no gradient: {missed[0]}"
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    counts = {int(m.num_batches_tracked) for m in norms if m.num_batches_tracked is not None}
    return "" if counts <= {1} else f"BatchNorm counted {sorted(counts)} batches"


def tried(library, name, fixed):
    """One row of the table."""
    began = time.perf_counter()
    row = {"model": f"{library}:{name}"}
    backbone = build(library, name).eval()
    size = size_of(backbone, name, fixed)
    row["image_size"] = size
    images, labels = torch.randn(2, 3, size, size), torch.arange(2) % CLASSES
    try:
        row["at"] = even_cuts(backbone, 2, (3, size, size))
        net = auxnet.attach(backbone, row["at"], example=images[:1])
    except ValueError as error:
        return row | {"attached": False, "why": str(error)}
    row |= {"attached": True, "outputs": net.outputs, "depths": net.depths}
    row["heads"] = [type(head).__name__ for head in net.heads[:-1]]
    row["logits_equal"] = equal_logits(backbone, net, images)
    row["params"] = [count_parameters(net.truncate(k)) for k in range(1, net.outputs + 1)]
    row["steps"] = {}
    for method, make in METHODS.items():
        try:
            row["steps"][method] = one_step(net, make, images, labels)
        except Exception as error:
            row["steps"][method] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return row | {"seconds": round(time.perf_counter() - began, 1)}


def line(row):
    if not row["attached"]:
        return f"| {row['model']} | no | | | | | | {row['why'][:110]} |"
    steps = " ".join("yes" if not wrong else f"NO ({wrong})" for wrong in row["steps"].values())
    depths, params = ", ".join(map(str, row["depths"])), ", ".join(f"{p / 1e6:.2f} M" for p in row["params"])
    equal = "yes" if row["logits_equal"] else "NO"
    return f"| {row['model']} | {', '.join(row['at'])} | {row['outputs']} | {depths} | {equal} | {steps} | {params} | |"


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--only", nargs="*", help="these models alone (library:name)")
    arguments.add_argument(
        "--out", type=Path, default=Path("results/backbones.json"), help="whose rows are replaced, each once it is made"
    )
    chosen = arguments.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    import timm
    import torchvision

    made = provenance(torch.device("cpu"))
    made["versions"] |= {"timm": timm.__version__, "torchvision": torchvision.__version__}
    print(f"| model | cut after | outputs | depths | logits equal | {' '.join(METHODS)} | truncated | |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    earlier = json.loads(chosen.out.read_text())["models"] if chosen.out.is_file() else []
    table, rows = {row["model"]: row for row in earlier}, []
    for fixed, text in ((False, CNNS), (True, FIXED_SIZE)):
        for library, name in models(text):
            if chosen.only and f"{library}:{name}" not in chosen.only:
                continue
            rows.append(tried(library, name, fixed) | {"day": f"{date.today()}", "commit": made["commit"]})
            table[rows[-1]["model"]] = rows[-1]
            chosen.out.write_text(json.dumps({**made, "models": [*table.values()]}, indent=1) + "\n")
            print(line(rows[-1]), flush=True)
    attached = [row for row in rows if row["attached"]]
    whole = [row for row in attached if row["logits_equal"] and not any(row["steps"].values())]
    print(f"\n{len(rows)} models, {len(attached)} attached, {len(whole)} of them with equal logits and every step")


if __name__ == "__main__":
    main()
