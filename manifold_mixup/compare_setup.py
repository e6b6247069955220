"""The data set and the model of a comparison, checked before anything is computed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from manifold_mixup._random import seeded_generator
from manifold_mixup.checkpoint import seeded_backbone
from manifold_mixup.comparison import ELSEWHERE, check_compared
from manifold_mixup.data import Data, Part, is_csv, join_parts, list_data
from manifold_mixup.inspection import find_layers, trace
from manifold_mixup.models import cut_layers, fold_traced, freeze, input_size, replace_head
from manifold_mixup.prepare import check_tail, head_input
from manifold_mixup.training import Classes, check_pairs, check_task, trained_parameters


def check_together(settings: Mapping[str, Any]) -> None:
    """Raise a ValueError for what does not go together."""
    check_tail(settings["tail"])
    check_compared(settings["worth"], settings["seeds"], settings["label_noises"])
    if settings["tail"] == "frozen":
        for name in ("lrs", "epochs", "batch_size"):
            if settings[name] is not None:
                raise ValueError(
                    f"--{name.replace('_', '-')}: heads alone are brought to their optimum, there "
                    "are no steps; leave it out, or give --tail trainable"
                )
    check_task(settings["task"], None)
    if settings["with_input"] and settings["tail"] == "trainable":
        raise ValueError("--with-input trains heads alone; leave it out, or --tail trainable")
    if settings["weights"] == "none":
        raise ValueError("--weights none: every seed would have another backbone; give a file")
    if settings["test_on"] == settings["data"]:
        raise ValueError(f"--test-on {settings['data']}: that is DATA, which is trained on")


def list_compared(settings: Mapping[str, Any]) -> Data:
    """The data set, if it is of classes that the pairings can mix, and what lies elsewhere."""
    name, task, root = (settings[one] for one in ("data", "task", "data_root"))
    data = list_data(name, task=task, root=root)
    if data.task != "classes":
        hint = f" ({data.why})" if data.why else ""
        hint += "; --task classes takes them for classes" if data.task == "values" else ""
        raise ValueError(f"{data.title}: compare is for classes, this has {data.task}{hint}")
    for pairing in settings["pairings"]:
        first = torch.tensor(data.parts["train"].targets[:2])
        check_pairs(Classes(), pairing, (), first, len(data.classes))
    if settings["test_on"] is None:
        return data
    elsewhere = _elsewhere(settings["test_on"], task, root, data)
    return replace(data, parts={**data.parts, ELSEWHERE: elsewhere})


def _elsewhere(name: str, task: str | None, root: str | None, data: Data) -> Part:
    """The test part of another data set, or all of it, with the classes of this one."""
    other = list_data(name, task=task if is_csv(Path(name)) else None, root=root)
    if other.task != "classes":
        hint = "; --task classes takes them for classes" if other.task == "values" else ""
        raise ValueError(f"--test-on {name}: has {other.task}, expected classes as in DATA{hint}")
    part = other.parts.get("test") or join_parts(other.parts.values())
    if unknown := sorted(set(other.classes) - set(data.classes)):
        raise ValueError(
            f"--test-on {name}: holds class '{unknown[0]}', which {data.title} has not "
            f"({', '.join(data.classes[:5])}{', …' if len(data.classes) > 5 else ''})"
        )
    trained_on = join_parts(part for key, part in data.parts.items() if key != "test")
    known, own = _files(trained_on), _files(part)
    if both := sorted(own[file] for file in known.keys() & own.keys()):
        raise ValueError(
            f"--test-on {name}: {both[0]} is in DATA too, where it may be trained on; name a "
            "folder of other images"
        )
    targets = [data.classes.index(other.classes[target]) for target in part.targets]
    return replace(part, targets=targets, names=[f"{name}/{one}" for one in part.names])


def _files(part: Part) -> dict[tuple[int, int], Path]:
    """The files that images come from, by what is the same for all links to a file."""
    paths = [Path(one) for one in part.sources if isinstance(one, str | Path)]
    found = {path: path.stat() for path in paths if path.exists()}
    return {(status.st_dev, status.st_ino): path for path, status in found.items()}


def prepare_compared(settings: Mapping[str, Any], data: Data) -> tuple[nn.Module, list[str], bool]:
    """The model with only what is to be trained left to train, the layers, and whether a replicate
    costs more than solving for heads behind stored features.
    """
    model = seeded_backbone(settings["model"], settings["weights"], 0)
    head = replace_head(model, len(data.classes))
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise ValueError(
            f"{settings['model']}: its head is no linear layer with a bias, which is all that "
            "compare trains; choose another --model"
        )
    size = input_size(settings["model"], model)
    example = torch.randn(2, *size, generator=seeded_generator(0, "example"))
    layers = _layers(model, settings["layers"]) or [head_input(trace(model, (example,), {}), head)]
    found = trace(model, (example,), {}, keep=layers)
    tails = cut_layers(found, layers, (example,), {})
    is_trainable = settings["tail"] == "trainable"
    behind = [m for layer in layers for m in found.modules_after(layer)] if is_trainable else []
    freeze(model, except_=[head, *behind])
    is_dear = is_trainable or settings["with_input"]
    for layer, tail in tails.items():  # or an error would come when all images have been read
        trained_parameters(found, layer)
        leaves = found.run(fold_traced(found, layer, tail)).leaves.values()
        is_dear = is_dear or next(iter(leaves)).shape[1:].numel() != head.in_features
    return model, layers, is_dear


def _layers(model: nn.Module, patterns: Sequence[str] | None) -> list[str]:
    """The names of all layers that some patterns stand for, each once."""
    found = [layer for pattern in patterns or () for layer in find_layers(model, pattern)]
    if any(layer.is_input for layer in found):
        raise ValueError("--layers input: images are mixed by --with-input; name layers to store")
    return list(dict.fromkeys(layer.name for layer in found))
