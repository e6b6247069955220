"""Runs on disk: what comes back, what is noticed, which folders are taken."""

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from manifold_mixup import load_backbone, load_run, replace_head
from manifold_mixup._files import fingerprint, part_name, write_whole
from manifold_mixup.models.backbone import DIGITS_ARCHITECTURE
from manifold_mixup.runs.checkpoint import (
    FEATURES,
    FILES,
    HEAD,
    MODEL,
    RUN,
    STATE,
    claimed_folder,
    read_finished,
    read_info,
    read_state,
    save_run,
    seeded_backbone,
    write_state,
)
from manifold_mixup.training import TrainingState

SETTINGS = {
    "model": "digits",
    "weights": "pretrained",
    "head": "linear",
    "layer": "global_pool",
    "alpha": 0.4,
}


def save_tiny(
    folder: Path,
    *,
    model: str = "digits",
    weights: str | Path = "pretrained",
    seed: int = 0,
    whole: bool = False,
) -> nn.Module:
    """Write a run of 3 classes as `train` would; its model, in eval mode."""
    trained = seeded_backbone(model, weights, seed)
    before = {id(parameter) for parameter in trained.parameters()}
    replace_head(trained, 3)
    head = {n: p.detach() for n, p in trained.named_parameters() if id(p) not in before}
    settings = {**SETTINGS, "model": model, "weights": str(weights), "seed": seed}
    info = {
        "settings": settings,
        "classes": ["ant", "bee", "cat"],
        "channels": 1 if model == "digits" else 3,
        "held_out": {"val": [], "test": []},
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_run(folder, trained, TrainingState(head), info, whole=whole)
    return trained.eval()


def images(model: str = "digits") -> Tensor:
    """Two random images of the size that a model takes."""
    return torch.randn(2, 1, 32, 32) if model == "digits" else torch.randn(2, 3, 64, 64)


def a_training() -> TrainingState:
    """Where a training might stand."""
    return TrainingState(
        head={"fc.weight": torch.randn(3, 4), "fc.bias": torch.randn(3)},
        losses=[1.1, 0.1 + 0.2],
        epochs=[{"mixed_loss": 1 / 3, "val_accuracy": 0.5}],
        state={
            "optimizer.0.step": torch.tensor(2.0),
            "optimizer.0.exp_avg": torch.randn(3, 4, dtype=torch.float64),
            "generator": torch.Generator().manual_seed(3).get_state(),
        },
        best={"fc.weight": torch.randn(3, 4), "fc.bias": torch.randn(3)},
    )


def flip(file: Path, position: int) -> None:
    """Change one bit of one byte."""
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


# Load what was saved


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("model", "weights"),
    [("digits", "pretrained"), ("test_resnet", "none"), ("torchvision:squeezenet1_1", "none")],
)
def test_loaded_run_gives_the_same_logits(
    tmp_path: Path, model: str, weights: str, whole: bool
) -> None:
    """A run's model, its random weights included, is the trained one to the bit."""
    trained = save_tiny(tmp_path, model=model, weights=weights, seed=7, whole=whole)
    torch.manual_seed(99)
    x = images(model)

    run = load_run(tmp_path)

    with torch.no_grad():
        assert torch.equal(run.model(x), trained(x))
    assert not any(module.training for module in run.model.modules())
    assert run.classes == ["ant", "bee", "cat"]
    assert run.channels == x.shape[1]
    assert run.info["settings"]["seed"] == 7
    picture = Image.new("L" if run.channels == 1 else "RGB", (50, 40))
    assert run.transform(picture).shape[0] == run.channels


@pytest.mark.parametrize("whole", [False, True])
def test_loading_leaves_the_random_state(tmp_path: Path, whole: bool) -> None:
    """A run that is loaded in the middle of other work does not seed that work."""
    save_tiny(tmp_path, whole=whole)
    before = torch.get_rng_state()

    load_run(tmp_path)

    assert torch.equal(torch.get_rng_state(), before)


def test_whole_model_loads_with_plain_timm(tmp_path: Path) -> None:
    """Plain timm itself makes the trained model from the file, by its own strict loading."""
    trained, x = save_tiny(tmp_path, model="test_resnet", weights="none", whole=True), images("")

    plain = timm.create_model("test_resnet", num_classes=3, checkpoint_path=tmp_path / MODEL)

    with torch.no_grad():
        assert torch.equal(plain.eval()(x), trained(x))


def test_whole_built_in_model_loads_with_plain_timm(tmp_path: Path) -> None:
    """The built-in model is a timm one: its architecture and the file are all that is needed."""
    trained, x = save_tiny(tmp_path, whole=True), images()

    plain = timm.create_model(**{**DIGITS_ARCHITECTURE, "num_classes": 3})
    plain.load_state_dict(load_file(tmp_path / MODEL), strict=True)

    with torch.no_grad():
        assert torch.equal(plain.eval()(x), trained(x))


def test_whole_model_loads_with_plain_torchvision(tmp_path: Path) -> None:
    """A plain torchvision model takes the file, strictly."""
    name = "torchvision:squeezenet1_1"
    trained, x = save_tiny(tmp_path, model=name, weights="none", whole=True), images("")

    plain = torchvision.models.squeezenet1_1(num_classes=3)
    plain.load_state_dict(load_file(tmp_path / MODEL), strict=True)

    with torch.no_grad():
        assert torch.equal(plain.eval()(x), trained(x))


def test_whole_model_needs_no_weights(tmp_path: Path) -> None:
    """With the whole model in the run, the file that it was trained from may be gone."""
    weights = tmp_path / "weights.safetensors"
    save_file(load_backbone("digits").state_dict(), weights)
    trained, x = save_tiny(tmp_path / "run", weights=weights, whole=True), images()
    weights.unlink()

    run = load_run(tmp_path / "run")

    with torch.no_grad():
        assert torch.equal(run.model(x), trained(x))


def test_moved_weights_are_given_anew(tmp_path: Path) -> None:
    """Without its backbone's file a run says which is missing; with it elsewhere, it loads."""
    weights = tmp_path / "weights.safetensors"
    save_file(load_backbone("digits", weights="none").state_dict(), weights)
    trained, x = save_tiny(tmp_path / "run", weights=weights), images()
    moved = weights.rename(tmp_path / "elsewhere.safetensors")

    with pytest.raises(FileNotFoundError, match=re.escape(f"weights {weights}: no such file")):
        load_run(tmp_path / "run")
    with torch.no_grad():
        assert torch.equal(load_run(tmp_path / "run", weights=moved).model(x), trained(x))


@pytest.mark.parametrize("weights", ["none", "other"])
def test_other_backbone_is_noticed(tmp_path: Path, weights: str) -> None:
    """A head is never silently put on a backbone that it was not trained on."""
    save_tiny(tmp_path / "run")
    if weights == "other":
        weights = str(tmp_path / "other.safetensors")
        state = load_backbone("digits").state_dict()
        state["layer1.0.bn1.running_mean"][0] += 1e-6
        save_file(state, weights)

    with pytest.raises(ValueError, match=r"backbone differs.*digits, weights pretrained"):
        load_run(tmp_path / "run", weights=weights)


def test_saving_again_replaces_the_whole_model(tmp_path: Path) -> None:
    """The whole model of an earlier run does not stay beside the head of a later one."""
    save_tiny(tmp_path, whole=True, seed=1)

    trained = save_tiny(tmp_path, whole=False, seed=2)

    assert not (tmp_path / MODEL).exists()
    with torch.no_grad():
        x = images()
        assert torch.equal(load_run(tmp_path).model(x), trained(x))


def test_finished_run_has_no_state_and_says_its_versions(tmp_path: Path) -> None:
    """What was needed to go on goes when the run is finished; what made it is written down."""
    write_state(tmp_path, a_training(), SETTINGS)

    save_tiny(tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {RUN, HEAD}
    info = json.loads((tmp_path / RUN).read_text())
    assert info["versions"]["torch"] == torch.__version__
    assert info["head"] == ["fc.bias", "fc.weight"]
    assert info == read_info(tmp_path)


# Nothing is executed, nothing goes unnoticed


def test_no_file_is_a_pickle(tmp_path: Path) -> None:
    """A run is safetensors and JSON: each file has the form of one of them."""
    save_tiny(tmp_path, whole=True)
    write_state(tmp_path, a_training(), SETTINGS)

    for file in tmp_path.iterdir():
        content = file.read_bytes()
        if file.suffix == ".safetensors":
            size = int.from_bytes(content[:8], "little")
            content = content[8 : 8 + size]
        assert isinstance(json.loads(content), dict)


def test_every_flipped_bit_of_a_state_is_noticed(tmp_path: Path) -> None:
    """Whichever byte of an unfinished run is damaged, going on is refused and the file named."""
    write_state(tmp_path, a_training(), SETTINGS)
    file = tmp_path / STATE
    # The generator's state is long, and all of its bytes are alike.
    size = file.stat().st_size
    positions = [*range(0, min(size, 1500)), *range(1500, size, 97), size - 1]

    for position in positions:
        flip(file, position)
        with pytest.raises(ValueError, match=f"{re.escape(str(file))}: damaged"):
            read_state(tmp_path, SETTINGS)
        flip(file, position)
    assert read_state(tmp_path, SETTINGS) is not None


def test_every_flipped_bit_of_a_run_is_noticed(tmp_path: Path) -> None:
    """Whichever byte of the settings or numbers is damaged, the file is named."""
    save_tiny(tmp_path)
    file = tmp_path / RUN

    for position in range(file.stat().st_size):
        flip(file, position)
        with pytest.raises(ValueError, match=f"{re.escape(str(file))}: damaged"):
            read_info(tmp_path)
        flip(file, position)
    assert read_info(tmp_path)["classes"] == ["ant", "bee", "cat"]


@pytest.mark.parametrize("name", [HEAD, MODEL])
@pytest.mark.parametrize("where", [0, 0.02, 0.3, 0.6, 0.99])
def test_flipped_bit_of_a_model_is_noticed(tmp_path: Path, name: str, where: float) -> None:
    """A damaged head or model is named, whether its header or its values are hit."""
    save_tiny(tmp_path, whole=name == MODEL)
    flip(tmp_path / name, int(where * (tmp_path / name).stat().st_size))

    with pytest.raises(ValueError, match=re.escape(str(tmp_path / name))) as caught:
        load_run(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 1, 9, 0.5, 0.99])
@pytest.mark.parametrize("name", [RUN, HEAD, MODEL])
def test_file_cut_short_is_named(tmp_path: Path, name: str, kept: float) -> None:
    """Half a file is one error in one line that names it and says what to do."""
    save_tiny(tmp_path, whole=name == MODEL)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(
        content[: kept if kept in (0, 1, 9) else int(kept * len(content))]
    )

    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / name}: damaged")) as caught:
        load_run(tmp_path)
    assert "train again" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["[1, 2]", "3", "null", "{}", '"run"', '{"settings": {}}', "\udcff"]
)
def test_other_json_is_no_run(tmp_path: Path, text: str) -> None:
    """What is no record of a run is refused as such."""
    (tmp_path / RUN).write_bytes(text.encode(errors="surrogateescape"))

    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / RUN}: damaged")):
        load_run(tmp_path)


def test_missing_head_is_named(tmp_path: Path) -> None:
    """A run without its head's file says which file that is."""
    save_tiny(tmp_path)
    (tmp_path / HEAD).unlink()

    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path / HEAD}: missing")):
        load_run(tmp_path)


@pytest.mark.parametrize("make", [None, Path.mkdir, Path.touch])
def test_folder_without_a_run_is_named(tmp_path: Path, make: Any) -> None:
    """A folder that is missing, empty or a file has no finished run."""
    folder = tmp_path / "x"
    if make is not None:
        make(folder)

    with pytest.raises(FileNotFoundError, match=r"no finished run \(expected run.json in it\)"):
        load_run(folder)


def test_unfinished_run_says_how_to_go_on(tmp_path: Path) -> None:
    """Where only a state lies, the way to finish it is named."""
    write_state(tmp_path, a_training(), SETTINGS)

    with pytest.raises(FileNotFoundError, match="unfinished: go on with `train --resume`"):
        load_run(tmp_path)


def test_head_of_another_run_is_refused(tmp_path: Path) -> None:
    """Files of two runs do not mix, neither of another seed nor of another number of classes."""
    save_tiny(tmp_path / "one", seed=1)
    save_tiny(tmp_path / "two", seed=2)
    head = load_file(tmp_path / "two" / HEAD)
    (tmp_path / "two" / HEAD).replace(tmp_path / "one" / HEAD)

    with pytest.raises(ValueError, match=f"{HEAD}: damaged"):
        load_run(tmp_path / "one")

    save_file({name: tensor[:2].clone() for name, tensor in head.items()}, tmp_path / "one" / HEAD)
    with pytest.raises(ValueError, match=r"does not fit the model of this run \('fc.bias'\)"):
        load_run(tmp_path / "one")


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t["a"].__setitem__(0, 5.0),
        lambda t: t.update(a=t["a"].view(4, 1)),
        lambda t: t.update(a=t["a"].double()),
        lambda t: t.update(b=t.pop("a")),
        lambda t: t.update(b=torch.zeros(1)),
    ],
    ids=["value", "shape", "type", "name", "one more"],
)
def test_fingerprint_tells_tensors_apart(change: Callable[[dict[str, Tensor]], Any]) -> None:
    """It changes with values, shapes, types and names, not with order or memory format."""
    tensors = {"a": torch.arange(4.0), "c": torch.ones(2, 3, 4, 4)}
    before = fingerprint(tensors)
    same = {"c": tensors["c"].to(memory_format=torch.channels_last), "a": tensors["a"]}

    assert fingerprint(same) == before
    change(tensors)
    assert fingerprint(tensors) != before


def test_fingerprint_of_an_empty_tensor_and_of_bfloat16() -> None:
    """Tensors of no values, of none of NumPy's types, and of no axis have one too."""
    tensors = {"a": torch.zeros(0, 3), "b": torch.ones(2).bfloat16(), "c": torch.tensor(1)}

    assert fingerprint(tensors) == fingerprint(dict(reversed(tensors.items())))


# States of unfinished runs


def test_state_comes_back_as_it_was(tmp_path: Path) -> None:
    """Numbers to the last digit, tensors to the bit and in their types."""
    training = a_training()

    write_state(tmp_path, training, SETTINGS)
    found = read_state(tmp_path, SETTINGS)

    assert found is not None
    assert (found.losses, found.epochs) == (training.losses, training.epochs)
    for before, after in ((training.head, found.head), (training.state, found.state)):
        assert before.keys() == after.keys()
        assert all(after[name].dtype == tensor.dtype for name, tensor in before.items())
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_no_state_is_none(tmp_path: Path) -> None:
    """A folder without an unfinished run has nothing to go on from, nor a finished one."""
    assert read_state(tmp_path, SETTINGS) is None
    assert read_finished(tmp_path, SETTINGS) is None


@pytest.mark.parametrize(
    "changes", [{"alpha": 0.5}, {"weights": "none"}, {"layer": "layer4"}, {"seed": 1}]
)
def test_other_settings_are_refused_by_name(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Going on with another setting, or reading a run of one, names it with both values."""
    ((name, value),) = changes.items()
    settings = {**SETTINGS, "seed": 0}
    write_state(tmp_path, a_training(), settings)
    before = settings[name]
    message = re.escape(f"was started with {name}={before!r}, now it is {value!r}")

    with pytest.raises(ValueError, match=message):
        read_state(tmp_path, {**settings, **changes})

    save_tiny(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_finished(tmp_path, {**settings, **changes})
    assert read_finished(tmp_path, settings) == read_info(tmp_path)


def test_run_that_is_being_replaced_is_not_finished(tmp_path: Path) -> None:
    """While a state lies beside an earlier run, the state is what counts."""
    save_tiny(tmp_path)
    write_state(tmp_path, a_training(), SETTINGS)

    assert read_finished(tmp_path, SETTINGS) is None
    assert read_state(tmp_path, SETTINGS) is not None


def test_failed_write_leaves_the_file_before_and_no_part(tmp_path: Path) -> None:
    """A file that cannot be put in its place leaves nothing half-written behind."""
    (tmp_path / STATE / "full").mkdir(parents=True)

    with pytest.raises(OSError, match=STATE):
        write_state(tmp_path, a_training(), SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == [STATE]


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from manifold_mixup.runs.checkpoint import write_state
from manifold_mixup.training import TrainingState

folder, number = Path(sys.argv[1]), 0
while True:
    number += 1
    training = TrainingState({"a": torch.full((100_000,), float(number))}, [float(number)])
    write_state(folder, training, {"alpha": 1})
    print(number, flush=True)
"""


def test_state_survives_a_kill_at_any_moment(tmp_path: Path) -> None:
    """A process killed while it writes one state after another leaves a whole one, which the
    folder's next owner accepts with whatever part lies beside it.
    """
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        seen = [int(process.stdout.readline()) for _ in range(20)]
        process.kill()

    with claimed_folder(tmp_path, "x", resume=True):
        found = read_state(tmp_path, {"alpha": 1})

    assert found is not None
    assert found.losses[0] >= seen[-1]
    assert (found.head["a"] == found.losses[0]).all()


# Folders


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def finish(folder: Path) -> None:
    """Something to keep."""
    (folder / RUN).touch()


def fail(folder: Path, error: BaseException, *names: str) -> None:
    """Write files and raise."""
    assert folder.is_dir()
    for name in names:
        (folder / name).touch()
    raise error


def test_next_free_folder_is_taken(inside: Path) -> None:
    """Without a name given, runs count up, and no earlier one is touched."""
    folders = []
    for _ in range(3):
        with claimed_folder(None, "pets") as folder:
            finish(folder)
            folders.append(folder)

    assert folders == [Path("runs", f"pets-{number}") for number in (1, 2, 3)]


def test_two_at_a_time_take_two_folders(inside: Path) -> None:
    """A folder is taken from the start, before anything is in it."""
    with claimed_folder(None, "pets") as one, claimed_folder(None, "pets") as other:
        assert one != other
        assert one.is_dir()
        assert other.is_dir()


def test_folder_that_stays_empty_is_removed(inside: Path) -> None:
    """Nothing is left of a run that came to nothing, nor of the folders made for it."""
    with pytest.raises(ZeroDivisionError), claimed_folder("a/b/c", "pets") as folder:
        fail(folder, ZeroDivisionError())

    assert list(inside.iterdir()) == []


def test_folder_that_was_there_stays(inside: Path) -> None:
    """An empty folder that the user made is the user's, and what holds something stays."""
    (inside / "mine").mkdir()

    with claimed_folder("mine", "pets"):
        pass
    with claimed_folder("mine/made", "pets"):
        pass
    with claimed_folder("mine/kept/run", "pets") as folder:
        finish(folder)

    assert {path.relative_to(inside).as_posix() for path in inside.rglob("*")} == {
        "mine",
        "mine/kept",
        "mine/kept/run",
        "mine/kept/run/run.json",
    }


def test_interrupt_keeps_what_is_there(inside: Path) -> None:
    """Ctrl-C in the block is passed on, and the folder kept with what is in it."""
    with pytest.raises(KeyboardInterrupt), claimed_folder("run", "pets") as folder:
        fail(folder, KeyboardInterrupt(), STATE)

    assert [path.name for path in Path("run").iterdir()] == [STATE]


@pytest.mark.parametrize("name", sorted({*FILES, *map(part_name, FILES)} - {FEATURES}))
def test_existing_run_is_refused_without_a_word_on_it(inside: Path, name: str) -> None:
    """Whatever of a run is there, a finished file or a part of one, it is not overwritten."""
    Path("run").mkdir()
    (inside / "run" / name).write_text("precious")

    with (
        pytest.raises(FileExistsError, match="run: holds a run; go on with it by --resume"),
        claimed_folder("run", "pets"),
    ):
        pytest.fail("was claimed")

    assert (inside / "run" / name).read_text() == "precious"
    for option in ("overwrite", "resume"):
        with claimed_folder("run", "pets", **{option: True}) as folder:
            assert folder == Path("run")


def fail_with(error: Exception) -> None:
    """Raise it."""
    raise error


@pytest.mark.parametrize("text", ["{}", "[]", "3"])
def test_json_of_others_is_damaged(tmp_path: Path, text: str) -> None:
    """In words, without the name of an exception."""
    (tmp_path / RUN).write_text(text)
    with pytest.raises(ValueError, match=r"run.json: damaged \(no JSON object with a checksum\)"):
        read_info(tmp_path)


def test_write_that_fails_names_the_file(tmp_path: Path) -> None:
    """The system's errors of a full or limited disk name none."""

    def fail(partial: Path) -> None:
        partial.write_text("half")
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    with pytest.raises(OSError, match=f"too large: .*{RUN}") as caught:
        write_whole(tmp_path / RUN, fail)
    assert caught.value.errno == errno.EFBIG
    with pytest.raises(OSError, match="^cannot write this$"):
        write_whole(tmp_path / RUN, lambda partial: fail_with(OSError("cannot write this")))
    assert not list(tmp_path.iterdir())


def test_features_alone_are_no_run(inside: Path) -> None:
    """What came no further than its features may begin anew without a word, and keeps them."""
    file = inside / "run" / FEATURES / "0.safetensors"
    file.parent.mkdir(parents=True)
    file.write_text("precious")

    with claimed_folder("run", "pets") as folder:
        assert folder == Path("run")
    assert file.read_text() == "precious"


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
@pytest.mark.parametrize("name", ["thesis.txt", ".hidden", "model.pth", "sub/run.json"])
def test_folder_with_other_things_is_never_taken(
    inside: Path, options: dict[str, bool], name: str
) -> None:
    """Not even `--overwrite` takes a folder that holds anything but a run."""
    file = inside / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text("precious")
    finish(inside / "run")

    with (
        pytest.raises(FileExistsError, match=f"holds other files .{name.split('/')[0]}"),
        claimed_folder("run", "pets", **options),
    ):
        pytest.fail("was claimed")

    assert file.read_text() == "precious"


def test_overwriting_forgets_the_state_and_keeps_the_run_until_it_is_replaced(
    inside: Path,
) -> None:
    """A new training starts anew, yet the earlier result is there until the new one is."""
    save_tiny(inside / "run")
    write_state(inside / "run", a_training(), SETTINGS)

    with claimed_folder("run", "pets", overwrite=True) as folder:
        assert not (folder / STATE).exists()
        assert load_run(folder).classes == ["ant", "bee", "cat"]


@pytest.mark.parametrize("output", ["file", "file/run", "file/a/b"])
def test_output_that_cannot_be_made_is_named(inside: Path, output: str) -> None:
    """A file in the place of a folder is an error that names the folder, and nothing is made."""
    Path("file").write_text("precious")

    with (
        pytest.raises(OSError, match=f"{output}: cannot be made"),
        claimed_folder(output, "pets"),
    ):
        pytest.fail("was claimed")

    assert [path.name for path in inside.iterdir()] == ["file"]
    assert Path("file").read_text() == "precious"


@pytest.mark.parametrize("make", [Path.touch, lambda runs: runs.symlink_to("nowhere")])
def test_runs_that_cannot_be_made_are_an_error(inside: Path, make: Callable[[Path], None]) -> None:
    """A file called `runs`, or a link to nowhere, ends the search for a free folder."""
    make(Path("runs"))

    with pytest.raises(OSError, match="runs/pets-1: cannot be made"), claimed_folder(None, "pets"):
        pytest.fail("was claimed")
