"""What a recipe holds: its fields, their defaults and what they mean, in the sections that --help shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LARGEST = 4096  # pixels a side of what a net sees; the pictures that this is cut from may have twice as many

# the choices that not only a field here offers, but also a function or another command
Stream = Literal["auto", "always", "never"]
Fit = Literal["crop", "pad", "stretch"]
Form = Literal["cifar", "imagenet"]
Block = Literal["plain", "original", "preact"]
Head = Literal["default", "bn_relu", "linear"]
MethodName = Literal["joint", "pairwise", "multiway"]
Mode = Literal["live", "frozen", "fused"]
Way = Literal["joint", "pairwise", "live", "frozen", "fused"]
State = Literal["per_output", "shared"]
Order = Literal["shallow_first", "deep_first"]
StepScale = Literal["none", "sum", "equilibrium", "cumulative", "adaptive"]
RelativeTo = Literal["final", "last_auxiliary"]
Which = Literal["last", "best"]  # of the weights of a run
By = Literal["error", "balanced"]  # what an output is chosen by; balanced: the mean of the errors of the classes
Confidence = Literal["entropy", "top", "margin"]
Cost = Literal["macs", "latency"]
Format = Literal["safetensors", "onnx", "torch", "onnx-early-exit"]


@dataclass(frozen=True)
class DataFields:
    """The images, and what is done to them."""

    data: str = "digits"
    """digits, cifar10, cifar100, svhn, a folder of class folders or of parquet shards, an .npz file, hf:owner/name"""
    data_dir: str | None = None
    """the folder that holds data sets; none: $AUXNET_DATA"""
    image_size: int | None = None
    """bring all images to a square of this many pixels a side"""
    fit: Fit = "crop"
    """with image_size, how images are made square: crop keeps the middle, pad adds black borders, stretch distorts"""
    val_fraction: float = 0.1
    """share of the training images, class by class, that is held out for validation: every choice is made on it"""
    train_images: int | None = None
    """train on only this many of the training images, drawn class by class; none: all"""
    augment: Literal[
        "default", "none", "crop", "flip", "crop+flip", "crop+flip+trivial", "rrc+flip", "rrc+flip+trivial"
    ] = "default"
    """random crops after padding, random resized crops (rrc), mirroring, TrivialAugment; default: suits the data"""
    stream: Stream = "auto"
    """read images of folders and parquet from disk in training; auto: if they would take half of free memory"""
    workers: int | None = None
    """processes that decode images left on disk, and make random resized crops; none: one per core"""
    max_corrupt: int = 0
    """how many unreadable images may be skipped (each is named) before the run fails"""


@dataclass(frozen=True)
class NetworkFields:
    """The trunk, where its outputs are, and their heads."""

    depth: int = 20
    """layers of the network: 6n + 2, or 18, 34, 50, 101, 152 in the imagenet form"""
    form: Form = "cifar"
    """form of the built-in ResNets: cifar for images of about 32 pixels a side, imagenet for about 224"""
    outputs: int | None = None
    """number of outputs, the final one included, placed evenly from the top; none: 3, or as --at says"""
    at: tuple[int, ...] | None = None
    """layers of the auxiliary outputs, in place of --outputs"""
    placement: Literal["even", "stages", "blocks"] = "even"
    """even: as --outputs or --at says; stages, blocks: an output after every stage, or after every block (the most)"""
    block: Block = "preact"
    """residual block; plain: no skip; original: post-activation; preact: pre-activation"""
    width: int = 1
    """factor of the channels (Wide ResNet); in bottlenecks, of the inner channels"""
    head: Head = "default"
    """form of the auxiliary heads; default: the form of the final head"""
    alone: int | None = None
    """train only output N's part of the network, as an ordinary single-output net"""
    backbone: str | None = None
    """in place of the built-in ResNets: timm:NAME, torchvision:NAME, or package.module:function of your own"""
    cuts: int | tuple[str, ...] | None = None
    """modules of the backbone after which outputs are added, or a number of cuts, placed evenly; none: 2"""
    pretrained: str | None = None
    """initial weights, and their normalisation: a run (outputs may sit elsewhere), a backbone's file, hf:owner/name"""
    freeze: Literal["none", "trunk"] = "none"
    """trunk: pretrained trunk and final head stay as they are, their answers too; only auxiliary heads train"""


@dataclass(frozen=True)
class MethodFields:
    """How gradients are propagated, and what each output's loss weighs."""

    method: MethodName = "multiway"
    """how gradients are propagated"""
    mode: Mode = "live"
    """multiway: the paper's live form (about 1.8 times a plain step), frozen, or fused (about 1.05 times)"""
    state: State = "per_output"
    """multiway: an optimizer state (momentum) for each output, as in the paper, or one for all outputs"""
    order: Order = "shallow_first"
    """multiway: the order in which outputs update the trunk; in the paper from shallow to deep"""
    step_scale: Literal["default", StepScale] = "default"
    """rule that divides the trunk's step size; default: sum (joint), none (pairwise), cumulative (multiway)"""
    aggregator: str | None = None
    """joint: the torchjd aggregator that combines the outputs' gradients of the trunk: UPGrad, PCGrad, MGDA, ..."""
    gamma: float = 2.0
    """loss weights are (layer / depth)^gamma"""
    floor: float = 0.01
    """smallest loss weight"""
    relative_to: RelativeTo = "final"
    """the output whose depth loss weights refer to: the final one (paper) or the last auxiliary one (authors' code)"""
    weights: tuple[float, ...] | None = None
    """loss weights in place of gamma's: one for all auxiliary outputs, or one for each output, final one included"""
    weight_schedule: Literal["constant", "linear"] = "constant"
    """linear: the auxiliary outputs' weights fall evenly towards 0 at the end of the run (DSN)"""
    discard_after: float | None = None
    """share of the run, or epochs if 1 or more, after which auxiliary losses are discarded; their heads stay fixed"""
    loss: Literal["cross_entropy", "square_hinge"] = "cross_entropy"
    """training loss; validation and test losses are cross-entropy either way"""
    distill: float = 0.0
    """weight, 0..1, of self-distillation in an auxiliary output's loss (the final output teaches); not in pairwise"""
    temperature: float = 3.0
    """softmax temperature of the distillation loss (not the one of auxnet exits, which calibrates confidences)"""


@dataclass(frozen=True)
class TrainingFields:
    """The epochs, the optimizer and its step size, regularisation, the seed."""

    epochs: int = 30
    """passes over the training images"""
    batch_size: int = 128
    """images per step"""
    optimizer: str = "SGD"
    """any optimizer of torch.optim that takes dense gradients of any shape and keeps to its step size, by name"""
    lr: float = 0.1
    """step size at the start"""
    momentum: float = 0.9
    """for optimizers that have it"""
    nesterov: bool = True
    """for optimizers that have it"""
    weight_decay: float = 1e-4
    """for optimizers that have it; AdamW usually wants 0.01 to 0.05"""
    decay_norms: bool = True
    """apply weight decay to norms and biases (parameters of one dimension) too"""
    schedule: Literal["multistep", "cosine"] = "multistep"
    """how the step size falls: multistep, in drops at --milestones; cosine, along a cosine"""
    warmup: int = 0
    """epochs of linear warm-up of the step size"""
    milestones: tuple[float, ...] = (0.4, 0.6)
    """shares of the run after which the step size is multiplied by lr_decay"""
    lr_decay: float = 0.1
    """factor at each milestone"""
    clip: float | None = None
    """clip gradients to this norm, update by update"""
    label_smoothing: float = 0.0
    """share of the target spread over all classes"""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weight the loss by inverse class frequency"""
    mixup: float = 0.0
    """alpha of mixup: images are blended in pairs, by a share from Beta(alpha, alpha); 0: off"""
    cutmix: float = 0.0
    """alpha of cutmix: a rectangle of another image is pasted into each, its size drawn likewise; 0: off"""
    ema: float | None = None
    """decay of an exponential moving average of the weights, such as 0.999; the average is validated and saved"""
    sync_batchnorm: bool = False
    """under torchrun, BatchNorm normalises by the images of all processes, not by those of its own"""
    seed: int = 0
    """decides the validation split, the initial weights, the order of the images and the augmentation"""


@dataclass(frozen=True)
class MachineFields:
    """Where it runs, and in which precision."""

    device: str = "auto"
    """auto (cuda where there is one, else cpu), cpu, cuda, cuda:1, mps"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """precision of convolutions and linear layers; bfloat16 is for GPUs and CPUs with AMX, and slow on most others"""
    threads: int | None = None
    """CPU threads; none: PyTorch's choice, at most the cores that this process may use"""
    cuda_graph: bool = True
    """on a GPU, steps of built-in ResNets as CUDA graphs, recorded once and replayed in a few launches"""
    compile: bool = False
    """compile the trunk for training (torch.compile; on a CPU with a C++ compiler): a minute, then faster steps"""
