"""The options of the command line, each with its help."""

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    str | None,
    typer.Argument(
        metavar="[DATA]",
        help="A folder of class folders (with or without train/, val/ and test/ above them), a "
        "CSV file of path,label (and split), torch/NAME or hfds/NAME.",
        show_default=False,
    ),
]
ModelName = Annotated[str, typer.Argument(help="A name of timm, or torchvision:NAME.")]
Images = Annotated[list[Path], typer.Argument(help="Image files, and folders of them.")]
RunFolder = Annotated[Path, typer.Option("--run", help="The folder that `train` wrote.")]

Model = Annotated[
    str | None,
    typer.Option(help="A name of timm, or torchvision:NAME. [default: resnet50]"),
]
Weights = Annotated[
    str, typer.Option(help="pretrained, none (random), or a .safetensors or .pth file.")
]
RunWeights = Annotated[
    str | None,
    typer.Option("--weights", help="The backbone's weights, if they are not where they were."),
]
Task = Annotated[
    str | None,
    typer.Option(
        help="What a CSV file's labels are: classes, labels (any number for an image, ';' between "
        "them) or values (real numbers). [default: as they look]",
        show_default=False,
    ),
]
ClassesTask = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="classes, where the labels of a CSV file are numbers that stand for classes.",
        show_default=False,
    ),
]
Loss = Annotated[
    str | None,
    typer.Option(help="Of values: mse or huber. [default: mse]", show_default=False),
]
Layer = Annotated[
    str | None, typer.Option(help="Where to mix, by name. [default: what the head takes]")
]
Alpha = Annotated[
    str,
    typer.Option(
        help="Of Beta(alpha, alpha); 0 mixes nothing. auto: what a comparison on the training and "
        "validation images finds to help, 0 if nothing does."
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        help="Train by steps: passes over the data. [default: 10, where there are steps]",
        show_default=False,
    ),
]
Seed = Annotated[
    int,
    typer.Option(min=0, max=2**32 - 1, help="Of the split, the head, the order and the mixes."),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        help="Train by steps: images in a step. [default: 32, where there are steps]",
        show_default=False,
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(
        help="Train by steps: learning rate of the first. [default: what validation finds best in "
        "a few short trainings, where there are steps]",
        show_default=False,
    ),
]
CleanWeight = Annotated[
    float,
    typer.Option(
        help="Add so many times the loss of the same images unmixed, as RegMixup does; 0 leaves "
        "it out."
    ),
]
Optimizer = Annotated[
    str,
    typer.Option(
        help="auto: a linear head is brought to its optimum, all else goes by steps of AdamW. "
        "adamw, sgd (momentum 0.9): by steps."
    ),
]
Patience = Annotated[
    int | None,
    typer.Option(help="Stop after so many epochs without a better one, and keep the best."),
]
Dtype = Annotated[str, typer.Option(help="What to store features in: float32, float16, bfloat16.")]
WeightDecay = Annotated[
    str,
    typer.Option(
        help="At least 0. auto: what validation finds best from 10 to 0.0001; by steps 0.01."
    ),
]
Mixes = Annotated[
    int | None,
    typer.Option(
        help="How often all images are mixed, to bring a head to its optimum. [default: 16; 2 "
        "where each time has to pass through something]",
        show_default=False,
    ),
]
ClassWeight = Annotated[
    str | None,
    typer.Option(
        help="balanced: every class, or having a label or not, counts the same, however rare.",
        show_default=False,
    ),
]
Worth = Annotated[
    float,
    typer.Option(help="The smallest gain in accuracy worth having, in points of a hundred."),
]
LabelSmoothing = Annotated[float, typer.Option(help="In [0, 1).")]
Shots = Annotated[
    int | None,
    typer.Option(
        help="Train on so many images of each class, and choose by at most as many, to see what "
        "few would do. [default: all]",
        show_default=False,
    ),
]
LabelNoise = Annotated[
    float,
    typer.Option(
        help="Draw this share of the training and validation labels again, among all classes, to "
        "see what wrong ones would do; test labels stay."
    ),
]
Pairing = Annotated[
    str,
    typer.Option(help="Who mixes with whom: any, other-class, same-class, near-target."),
]
Exclude = Annotated[
    str | None,
    typer.Option(
        metavar="CLASS[,CLASS]",
        help="Classes that are never mixed, by name; 'a,\"b,c\"' if one holds a comma.",
    ),
]
Kind = Annotated[
    str, typer.Option(help="How to mix: mix (by weights), cutmix, moment-exchange or noisy.")
]
Prob = Annotated[float, typer.Option(help="Share of the steps that are mixed, in [0, 1].")]
AlphaWarmup = Annotated[
    float,
    typer.Option(help="Let alpha rise from 0 over this share of the epochs, in [0, 1]."),
]
Way = Annotated[
    str,
    typer.Option(
        help="cached: run the backbone once, store its features. hooked: run the whole model in "
        "every step. auto: cached where that gives the same numbers."
    ),
]
Head = Annotated[str, typer.Option(help="Kind of head: linear, mlp or cosine.")]
Tail = Annotated[
    str,
    typer.Option(help="frozen: train the head alone. trainable: all that lies behind the layer."),
]
Features = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the stored features, for runs to share. [default: features/ in the run]"
    ),
]
Fold = Annotated[
    bool,
    typer.Option(
        "--fold/--no-fold", help="Store features behind the averages that follow the layer."
    ),
]
Augment = Annotated[
    bool,
    typer.Option("--augment", help="Crop and flip training images at random, anew in each epoch."),
]
Views = Annotated[
    int,
    typer.Option(min=0, help="Store so many augmented views of each training image. [default: 0]"),
]
InMemory = Annotated[
    str,
    typer.Option(help="yes: read stored features into memory; no: from disk; auto: if they fit."),
]
Baseline = Annotated[
    bool | None,
    typer.Option(
        "--baseline/--no-baseline",
        help="Train without mixup too, for comparison. [default: for the built-in digits]",
        show_default=False,
    ),
]
Output = Annotated[
    Path | None, typer.Option(help="Folder of the run. [default: the next free runs/NAME-N]")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in that folder.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in that folder, or begin it.")
]
SaveModel = Annotated[
    bool, typer.Option("--save-model", help="Write the whole model too, for timm or torchvision.")
]
DataRoot = Annotated[
    Path | None, typer.Option(help="Where a named data set lies, or is to be stored.")
]
SkipDamaged = Annotated[bool, typer.Option("--skip-damaged", help="Leave damaged images out.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Workers = Annotated[int, typer.Option(min=0, max=256, help="Processes that load images.")]
All = Annotated[bool, typer.Option("--all", help="Those that cannot be mixed too, and why.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object; all else to stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Version = Annotated[bool, typer.Option("--version", help="Print the version.")]
Layers = Annotated[
    str | None,
    typer.Option(
        metavar="A,B", help="Where to mix, by name or pattern. [default: what the head takes]"
    ),
]
Alphas = Annotated[str, typer.Option(metavar="A,B", help="Of Beta(alpha, alpha), one row each.")]
Pairings = Annotated[
    str,
    typer.Option(
        metavar="A,B",
        help="Who mixes with whom: the first for every alpha, others one row each, where that "
        "costs no pass and no training.",
    ),
]
Rates = Annotated[
    str | None,
    typer.Option(
        metavar="A,B",
        help="Learning rates that each row tries, with --tail trainable. [default: "
        "0.00003,0.0001,0.0003,0.001]",
        show_default=False,
    ),
]
Decays = Annotated[
    str, typer.Option(metavar="A,B", help="Weight decays that each row's head tries.")
]
Smoothed = Annotated[
    float, typer.Option(help="Label smoothing of a row without mixing; 0 leaves it out.")
]
Seeds = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="The most replicates: splits and draws of mixes, with a seed each. [default: 20; 5 "
        "where each costs passes or trainings]",
        show_default=False,
    ),
]
Passes = Annotated[
    int | None,
    typer.Option(
        help="Passes over the training images, with --tail trainable; the best is kept. [default: "
        "20]",
        show_default=False,
    ),
]
CleanWeights = Annotated[
    str,
    typer.Option(
        metavar="A,B",
        help="Weights of the loss of unmixed images beside that of mixed ones, one row each; 0 "
        "leaves them out.",
    ),
]
WithInput = Annotated[
    bool,
    typer.Option("--with-input", help="Mix images too, which runs the whole model for each mix."),
]
Few = Annotated[
    str | None,
    typer.Option(
        "--shots", metavar="A,B", help="Compare again with so few training images of each class."
    ),
]
Wrong = Annotated[
    str | None,
    typer.Option(
        "--label-noise",
        metavar="A,B",
        help="Compare again with these shares of the training and validation labels redrawn.",
    ),
]
TestOn = Annotated[
    str | None,
    typer.Option(help="Test on DATA of another domain, with classes of the same names."),
]
