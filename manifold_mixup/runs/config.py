"""Every option of `manifold-mixup train` and `compare`, once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from manifold_mixup.comparison import Candidates, check_compared, list_scenarios
from manifold_mixup.data import check_columns, check_harder
from manifold_mixup.mixing import check_alpha, check_pairing, check_prob
from manifold_mixup.models import DIGITS
from manifold_mixup.runs.options import (
    absolute,
    check_solved,
    check_values,
    option,
    refuse_given,
    stored,
    told_as_options,
)
from manifold_mixup.training import (
    AUTO,
    BATCH_SIZE,
    COPIES,
    DECAY,
    DECAYS,
    EPOCHS,
    MIXES,
    check_decay,
    check_partners,
    check_training,
)

GROUPS = ("Data", "Model", "Mixing", "Training", "Features", "Output")
DATA, MODEL, MIXING, TRAINING, FEATURES, OUTPUT = GROUPS
_ANYWHERE: dict[str, Any] = {"is_stored": False}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What both commands are asked for.

    Raises:
        ValueError: An option is out of range, or does not go with another.
    """

    data: str = option(
        DIGITS,
        DATA,
        "A folder of class folders (with or without train/, val/ and test/ above them), a CSV "
        "file of path,label (and split), torch/NAME or hfds/NAME.",
        usual="built-in digits",
    )
    data_root: Path | None = option(
        None, DATA, "Where a named data set lies, or the images of a CSV file.", **_ANYWHERE
    )
    columns: tuple[str, ...] | None = option(
        None,
        DATA,
        "Of a CSV file: names of the columns of paths and of labels.",
        usual="path,label, or what is clear",
        check=check_columns,
    )
    label_separator: Literal["semicolon", "comma", "bar", "slash", "space", "none"] = option(
        "semicolon", DATA, "Of a CSV file: what stands between labels in a cell."
    )
    skip_unlabelled: bool = option(
        False, DATA, "Of a CSV file: leave rows without a label out, and those that say nan."
    )
    skip_damaged: bool = option(False, DATA, "Leave damaged images out.", **_ANYWHERE)
    model: str = option(
        "", MODEL, "A name of timm, or torchvision:NAME.", usual="resnet50, or digits"
    )
    weights: str = option(
        "pretrained", MODEL, "pretrained, none (random), or a .safetensors or .pth file."
    )
    tail: Literal["frozen", "trainable"] = option(
        "frozen", MODEL, "frozen: train the head alone. trainable: all that lies behind the layer."
    )
    mixes: int | None = option(
        None,
        TRAINING,
        "How often all images are mixed, to bring a head to its optimum.",
        usual=f"{MIXES}; {COPIES} where each time has to pass through something",
        least=1,
    )
    batch_size: int | None = option(
        None,
        TRAINING,
        "Train by steps: images in a step.",
        usual=f"{BATCH_SIZE}, where there are steps",
        check=lambda n: check_training(batch_size=n),
    )
    device: str = option("auto", TRAINING, "auto, cpu, cuda or mps.", **_ANYWHERE)
    workers: int = option(
        0, TRAINING, "Processes that load images.", least=0, most=256, **_ANYWHERE
    )
    features: Path | None = option(
        None,
        FEATURES,
        "Folder of the stored features, for runs to share.",
        usual="features/ in the run",
        **_ANYWHERE,
    )
    output: Path | None = option(
        None, OUTPUT, "Folder of the run.", usual="the next free runs/NAME-N", **_ANYWHERE
    )
    overwrite: bool = option(False, OUTPUT, "Replace the run in that folder.", **_ANYWHERE)
    resume: bool = option(
        False, OUTPUT, "Go on with the run in that folder, or begin it.", **_ANYWHERE
    )

    def __post_init__(self) -> None:
        is_built_in = self.data == DIGITS
        places = {} if is_built_in else {"data": absolute("DATA", self.data)}
        places["weights"] = absolute("--weights", self.weights)
        usual = DIGITS if is_built_in else "resnet50"
        self._set(**places, model=self.model or usual)
        self._set(**{name: tuple(x) for name, x in vars(self).items() if isinstance(x, list)})
        check_values(self)
        if self.resume and (self.output is None or self.overwrite):
            raise ValueError("--resume needs the --output of a run, and no --overwrite")
        if self.overwrite and self.output is None:
            raise ValueError("--overwrite needs the --output of the run to replace")

    def stored(self) -> dict[str, Any]:
        """What decides all that comes out, as JSON values."""
        return stored(self)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """What `manifold-mixup train` is asked for.

    Example:
        >>> TrainConfig(alpha=0.2).model
        'digits'
    """

    task: Literal["classes", "labels", "values"] | None = option(
        None,
        DATA,
        "What a CSV file's labels are: classes, labels (any number for an image) or values (real "
        "numbers).",
        usual="as they look",
    )
    shots: int | None = option(
        None,
        DATA,
        "Train on so many images of each class, and choose by at most as many, to see what few "
        "would do.",
        usual="all",
        check=lambda n: check_harder(n, 0.0),
    )
    label_noise: float = option(
        0.0,
        DATA,
        "Draw this share of the training and validation labels again, among all classes, to see "
        "what wrong ones would do; test labels stay.",
        check=lambda share: check_harder(None, share),
    )
    augment: bool = option(
        False, DATA, "Crop and flip training images at random, anew in each epoch."
    )
    views: int = option(
        0, DATA, "Store so many augmented views of each training image; 0 for none.", least=0
    )
    head: Literal["linear", "mlp", "cosine"] = option("linear", MODEL, "Kind of head.")
    layer: str | None = option(None, MIXING, "Where to mix, by name.", usual="what the head takes")
    alpha: float | Literal["auto"] = option(
        0.4,
        MIXING,
        "Of Beta(alpha, alpha); 0 mixes nothing. auto: what a comparison on the training and "
        "validation images finds to help, 0 if nothing does.",
        check=check_alpha,
    )
    pairing: str = option(
        "any",
        MIXING,
        "Who mixes with whom: any, other-class, same-class, near-target.",
        check=check_pairing,
    )
    exclude: tuple[str, ...] | None = option(
        None, MIXING, "Classes that are never mixed, by name; 'a,\"b,c\"' if one holds a comma."
    )
    kind: Literal["mix", "cutmix", "moment-exchange", "noisy"] = option(
        "mix", MIXING, "How to mix: mix is by weights."
    )
    prob: float = option(
        1.0, MIXING, "Share of the steps that are mixed, in 0 to 1.", check=check_prob
    )
    alpha_warmup: float = option(
        0.0, MIXING, "Let alpha rise from 0 over this share of the epochs.", least=0, most=1
    )
    clean_weight: float = option(
        0.0,
        MIXING,
        "Add so many times the loss of the same images unmixed, as RegMixup does; 0 leaves it "
        "out.",
        check=lambda weight: check_training(clean_weight=weight),
    )
    optimizer: Literal["auto", "adamw", "sgd"] = option(
        AUTO,
        TRAINING,
        "auto: a linear head is brought to its optimum, all else goes by steps of AdamW. adamw, "
        "sgd (momentum 0.9): by steps.",
    )
    weight_decay: float | Literal["auto"] = option(
        AUTO,
        TRAINING,
        f"At least 0. auto: what validation finds best from {DECAYS[0]:g} to {DECAYS[-1]:g}; by "
        f"steps {DECAY:g}.",
        check=check_decay,
    )
    epochs: int | None = option(
        None,
        TRAINING,
        "Train by steps: passes over the data.",
        usual=f"{EPOCHS}, where there are steps",
        check=lambda n: check_training(epochs=n),
    )
    lr: float | None = option(
        None,
        TRAINING,
        "Train by steps: learning rate of the first.",
        usual="what validation finds best in a few short trainings, where there are steps",
        check=lambda rate: check_training(lr=rate),
    )
    seed: int = option(
        0, TRAINING, "Of the split, the head, the order and the mixes.", least=0, most=2**32 - 1
    )
    label_smoothing: float = option(
        0.0,
        TRAINING,
        "At least 0, below 1.",
        check=lambda share: check_training(label_smoothing=share),
    )
    class_weight: Literal["balanced"] | None = option(
        None,
        TRAINING,
        "balanced: every class, or having a label or not, counts the same, however rare.",
    )
    loss: Literal["mse", "huber"] | None = option(None, TRAINING, "Of values.", usual="mse")
    patience: int | None = option(
        None, TRAINING, "Stop after so many epochs without a better one; keep the best.", least=1
    )
    way: Literal["auto", "hooked", "cached"] = option(
        "auto",
        FEATURES,
        "cached: run the backbone once, store its features. hooked: run the whole model in every "
        "step. auto: cached where that gives the same numbers.",
    )
    fold: bool = option(
        True,
        FEATURES,
        "Store features behind the averages that follow the layer.",
        opposite=True,
        **_ANYWHERE,
    )
    dtype: Literal["float32", "float16", "bfloat16"] = option(
        "float32", FEATURES, "What to store features in."
    )
    in_memory: Literal["auto", "yes", "no"] = option(
        "auto", FEATURES, "Read stored features into memory; auto: if they fit.", **_ANYWHERE
    )
    baseline: bool | None = option(
        None,
        OUTPUT,
        "Train without mixup too, for comparison.",
        usual="for the built-in digits",
        opposite=True,
        **_ANYWHERE,
    )
    save_model: bool = option(
        False, OUTPUT, "Write the whole model too, for timm or torchvision.", **_ANYWHERE
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(augment=self.augment or self.views > 0)
        if self.save_model and self.head != "linear":
            raise ValueError(f"--save-model: timm and torchvision know no {self.head} head")
        if self.views == 1:
            raise ValueError("--views 1: all epochs would see one view; give at least 2")
        if self.prob:
            with told_as_options(self):
                check_partners(self.batch_size or BATCH_SIZE, 1.0 if self.alpha else 0.0)
        check_solved(self)

    @property
    def has_baseline(self) -> bool:
        """Whether to train without mixup, too."""
        is_mixed = bool(self.alpha and self.prob)
        return self.data == DIGITS and is_mixed if self.baseline is None else self.baseline


@dataclass(frozen=True, kw_only=True)
class CompareConfig(RunConfig):
    """What `manifold-mixup compare` is asked for.

    Example:
        >>> CompareConfig(alphas=(0.0, 1.0)).candidates().alphas
        (0.0, 1.0)
    """

    task: Literal["classes"] | None = option(
        None, DATA, "classes, where the labels of a CSV file are numbers that stand for classes."
    )
    shots: tuple[int, ...] | None = option(
        None, DATA, "Compare again with so few training images of each class."
    )
    label_noises: tuple[float, ...] | None = option(
        None,
        DATA,
        "Compare again with these shares of the training and validation labels redrawn.",
        flag="--label-noise",
    )
    test_on: str | None = option(
        None, DATA, "Test on DATA of another domain, with classes of the same names."
    )
    layers: tuple[str, ...] | None = option(
        None, MIXING, "Where to mix, by name or pattern.", usual="what the head takes"
    )
    alphas: tuple[float, ...] = option(
        tuple(Candidates.alphas), MIXING, "Of Beta(alpha, alpha), one row each."
    )
    pairings: tuple[str, ...] = option(
        tuple(Candidates.pairings),
        MIXING,
        "Who mixes with whom: the first for every alpha, others one row each, where that costs no "
        "pass and no training.",
    )
    clean_weights: tuple[float, ...] = option(
        tuple(Candidates.clean_weights),
        MIXING,
        "Weights of the loss of unmixed images beside that of mixed ones, one row each; 0 leaves "
        "them out.",
    )
    with_input: bool = option(
        False, MIXING, "Mix images too, which runs the whole model for each mix."
    )
    label_smoothing: float = option(
        Candidates.label_smoothing, TRAINING, "Of a row without mixing; 0 leaves it out."
    )
    weight_decays: tuple[float, ...] = option(
        tuple(Candidates.weight_decays), TRAINING, "Weight decays that each row's head tries."
    )
    lrs: tuple[float, ...] | None = option(
        None,
        TRAINING,
        "Learning rates that each row tries, with --tail trainable.",
        usual=",".join(f"{rate:g}" for rate in Candidates.lrs),
    )
    epochs: int | None = option(
        None,
        TRAINING,
        "Passes over the training images, with --tail trainable; the best is kept.",
        usual=f"{Candidates.epochs}",
    )
    worth: float = option(
        0.01,
        TRAINING,
        "The smallest gain in accuracy worth having, in points of a hundred.",
        percent=True,
        most=1,
    )
    seeds: int | None = option(
        None,
        TRAINING,
        "The most replicates: splits and draws of mixes, with a seed each.",
        usual="20; 5 where each costs passes or trainings",
        least=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test_on is not None:
            self._set(test_on=absolute("--test-on", self.test_on))
        with told_as_options(self):
            check_compared(self.worth, self.seeds, self.label_noises or ())
            list_scenarios(self.shots or (), self.label_noises or ())
            self.candidates()  # or an error
        if self.tail == "frozen":
            solved = "heads alone are brought to their optimum, without --tail trainable"
            refuse_given(self, ("lrs", "epochs", "batch_size"), solved)
        elif self.with_input:
            raise ValueError("--with-input trains heads alone; leave it out, or --tail trainable")
        if self.weights == "none":
            raise ValueError("--weights none: every seed would have another backbone; give a file")
        if self.test_on == self.data:
            raise ValueError(f"--test-on {self.data}: that is DATA, which is trained on")

    def candidates(self) -> Candidates:
        """The ways to train that are compared."""
        given = {name: getattr(self, name) for name in Candidates.__dataclass_fields__}
        return Candidates(**{name: value for name, value in given.items() if value is not None})
