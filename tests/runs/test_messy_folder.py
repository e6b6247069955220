"""A folder as people have them: every file in it is used rightly, or named as left out."""

import json
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from manifold_mixup.cli import main
from manifold_mixup.runs import load_run

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
GREYS = {"cat": 60, NFC: 125, "__other": 190}

# Of each class in each part, in folders and under names of all kinds.
GOOD = ["1.png", "2.JPG", "3.jpeg", "4.jpe", "5.gif", "6.bmp", "7.tiff", "8.webp", "9.ppm"]
GOOD += ["照片 ü.png", "a, b; 'c' \"d\".png", "__10.png", "deep/er/11.PNG", "x.y.z.png", "-12.png"]

KINDS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "jpe": "JPEG", "gif": "GIF", "bmp": "BMP"}
KINDS |= {"tiff": "TIFF", "webp": "WEBP", "ppm": "PPM"}

Run = Callable[..., tuple[int, str, str]]


@dataclass
class Mess:
    """A folder, and what has to become of each file in it, by name below it."""

    root: Path
    good: dict[str, str] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def paint(self, name: str, grey: int) -> str:
        """A noisy picture of its own, of the kind that its ending says."""
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(list(os.fsencode(name))).normal(grey, 40, (20, 20))
        kind = KINDS[name.rpartition(".")[2].lower()]
        Image.fromarray(noise.clip(0, 255).astype("uint8")).convert("RGB").save(file, kind)
        return name

    def write(self, name: str, content: bytes = b"not a picture") -> str:
        """A file that is no picture."""
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_bytes(content)
        return name

    def part(self, name: str) -> set[str]:
        """The good pictures of a part."""
        return {one for one in self.good if one.startswith(name)}


@pytest.fixture(scope="module")
def mess(tmp_path_factory: pytest.TempPathFactory) -> Mess:
    """Two parts of three classes, and all that lies about."""
    made = Mess(tmp_path_factory.mktemp("mess") / "photos")
    for part, folders in {"Training": ["cat", NFD], "test-set": ["cat", NFC]}.items():
        for folder in [*folders, "__other"]:
            label = unicodedata.normalize("NFC", folder)
            for name in GOOD:
                made.good[made.paint(f"{part}/{folder}/{name}", GREYS[label])] = label
    raw = os.fsdecode(b"Training/cat/\xff\xfe.png")  # a name that is no text
    made.good[made.paint(raw, GREYS["cat"])] = "cat"
    for source, copy in (
        ("Training/cat/1.png", "test-set/cat/again.png"),
        ("Training/cat/2.JPG", "Training/__other/2 (1).JPG"),
        ("test-set/cat/3.jpeg", "test-set/cat/3 copy.jpeg"),
    ):
        shutil.copy(made.root / source, made.root / copy)
        made.good[copy] = copy.split("/")[1]
    half = (made.root / made.paint("Training/cat/half.jpg", 60)).read_bytes()
    made.damaged = [made.write("Training/cat/half.jpg", half[: len(half) // 2])]
    made.damaged += [made.write(f"test-set/cat/{name}") for name in ("text.png", "page.GIF")]
    made.damaged += [made.write("Training/__other/empty.bmp", b"")]
    others = ["labels.csv", "README", "Training/notes.txt", f"test-set/{NFC}/film.mp4"]
    others += ["Training/cat/a.heic", "Training/cat/b.HEIC", "Training/cat/deep/no ending"]
    made.others = [made.write(name) for name in others]
    made.loose = [made.paint(name, 99) for name in ("cover.png", "Training/sheet.jpg")]
    made.left_out = [made.paint(f"more/{name}", 99) for name in ("1.png", "in/2.png")]
    for folder in ("__MACOSX", "Training/.git", "Training/cat/@eaDir", "test-set/cat/.thumbnails"):
        made.hidden.append(made.paint(f"{folder}/1.png", 99))
    made.hidden.append(made.paint("test-set/cat/.ipynb_checkpoints/1-checkpoint.png", 99))
    for name in (".DS_Store", "Training/cat/Thumbs.db", "test-set/cat/desktop.ini"):
        made.hidden.append(made.write(name))
    made.hidden.append(made.paint("Training/cat/._1.png", 99))
    return made


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command; its exit status, and what it prints."""

    def call(*arguments: str) -> tuple[int, str, str]:
        status = main(list(arguments))
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


@pytest.fixture(scope="module")
def trained(mess: Mess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that left damaged pictures out."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    options = ["--model", "digits", "--skip-damaged", "--output", str(folder), "--no-baseline"]
    assert main(["train", str(mess.root), *options]) == 0
    return folder


def told_endings(line: str) -> dict[str, int]:
    """The counts that a line tells of endings or names."""
    return {name: int(n) for name, n in re.findall(r"([^\s,:]+)(?: \([^)]*\))?: (\d+)", line)}


def check_told(mess: Mess, lines: list[str]) -> None:
    """Each kind of file that is not used is told, with its number."""
    parts = "parts: Training/ for train, test-set/ for test; left out: more/"
    assert parts in lines
    assert f"{len(mess.loose)} images beside class folders left out (cover.png, …)" in lines or (
        f"{len(mess.loose)} images beside class folders left out (Training/sheet.jpg, …)" in lines
    )
    (endings,) = (line for line in lines if line.startswith("not taken for images, by their "))
    expected = Counter(Path(name).suffix.lower() or "none" for name in mess.others)
    assert told_endings(endings.partition("endings: ")[2]) == dict(expected)
    assert "(pip install pillow-heif)" in endings
    (hidden,) = (line for line in lines if line.startswith("left out as hidden"))
    # Of a hidden folder the folder is named.
    assert sum(told_endings(hidden.partition("own: ")[2]).values()) == min(5, len(mess.hidden))
    assert f"and {len(mess.hidden) - 5} more names" in hidden


def test_every_file_is_accounted_for(mess: Mess) -> None:
    """What the other tests expect is about all that lies in the folder."""
    found = {path.relative_to(mess.root).as_posix() for path in mess.root.rglob("*")}
    files = {name for name in found if (mess.root / name).is_file()}
    known = [*mess.good, *mess.damaged, *mess.others, *mess.hidden, *mess.loose, *mess.left_out]

    assert len(known) == len(set(known))
    assert files == set(known)


@pytest.mark.parametrize("command", ["train", "compare"])
def test_damaged_pictures_are_named_at_once(
    mess: Mess, run: Run, tmp_path: Path, command: str
) -> None:
    """All of them, in one line, and nothing is written."""
    options = ["--model", "digits", "--output", str(tmp_path / "out")]
    status, _, err = run(command, str(mess.root), *options)

    assert status == 2
    assert f"{len(mess.damaged)} damaged images: " in err
    assert all(name in err for name in mess.damaged)
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_training_uses_all_good_pictures(mess: Mess, run: Run, tmp_path: Path) -> None:
    """With their classes; all others are told, and so are copies."""
    folder = tmp_path / "out"
    options = ["--model", "digits", "--skip-damaged", "--output", str(folder), "--no-baseline"]
    status, out, _ = run("train", str(mess.root), *options)
    lines = out.splitlines()
    info = json.loads((folder / "run.json").read_text())

    assert status == 0
    assert info["classes"] == sorted(GREYS)
    assert set(info["held_out"]["test"]) == mess.part("test-set")
    assert set(info["held_out"]["val"]) <= mess.part("Training")
    assert set(info["damaged"]) == set(mess.damaged)
    n = {"val": len(info["held_out"]["val"]), "test": len(mess.part("test-set"))}
    n["train"] = len(mess.part("Training")) - n["val"]
    counts = ", ".join(f"{n[part]} {part}" for part in ("train", "val", "test"))
    assert lines[0].endswith(f"3 classes, images: {counts}")
    assert f"{len(mess.damaged)} damaged images left out" in lines
    check_told(mess, lines)
    copies = [line for line in lines if line.startswith("copies of one image ")]
    assert "Training/cat/1.png = test-set/cat/again.png" in copies[0]
    (labels,) = (line for line in copies if "several labels" in line)
    assert "Training/__other/2 (1).JPG = Training/cat/2.JPG" in labels.replace(
        "Training/cat/2.JPG = Training/__other/2 (1).JPG",
        "Training/__other/2 (1).JPG = Training/cat/2.JPG",
    )
    assert any("test-set/cat/3" in line and "in one part" in line for line in copies)


def test_evaluation_is_of_all_good_test_pictures(mess: Mess, run: Run, trained: Path) -> None:
    """Their number and their share that is right are those of predictions one by one."""
    given = [str(mess.root), "--run", str(trained), "--skip-damaged", "--json"]
    status, out, _ = run("evaluate", *given)
    found = json.loads(out)

    loaded = load_run(trained)
    right = []
    for name in sorted(mess.part("test-set")):
        with Image.open(mess.root / name) as image:
            logits = loaded.model(loaded.transform(image.convert("L"))[None])
        right.append(loaded.classes[int(logits.argmax())] == mess.good[name])
    assert status == 0
    assert (found["split"], found["n"]) == ("test", len(right))
    assert found["accuracy"] == pytest.approx(np.mean(right))
    assert set(found["damaged"]) == {one for one in mess.damaged if one.startswith("test-set")}
    assert found["accuracy"] > 0.8
    check_told(mess, found["about"])


@pytest.mark.filterwarnings("always")
def test_prediction_is_of_every_picture_in_the_folder(mess: Mess, run: Run, trained: Path) -> None:
    """With labels or without; what is no picture is told."""
    given = [str(mess.root), "--run", str(trained), "--skip-damaged"]
    status, out, err = run("predict", *given, "--json")
    assert status == 0, err
    found = json.loads(out)

    names = {Path(row["path"]).relative_to(mess.root).as_posix() for row in found["predictions"]}
    assert names == {*mess.good, *mess.loose, *mess.left_out}
    assert len(found["predictions"]) == len(names)
    damaged = {Path(name).relative_to(mess.root).as_posix() for name in found["damaged"]}
    assert damaged == set(mess.damaged)
    (endings,) = re.findall(r"not taken for images, by their endings: (.*)", err)
    expected = Counter(Path(name).suffix.lower() or "none" for name in mess.others)
    assert told_endings(endings) == dict(expected)
    assert "left out as hidden, or a system's own: " in err
    status, out, _ = run("predict", *given)
    assert status == 0
    assert len(out.splitlines()) == len(names)


def test_comparison_uses_all_good_pictures(mess: Mess, run: Run, tmp_path: Path) -> None:
    """As training does, and says the same."""
    few = "--alphas 1 --seeds 2 --weight-decays 0.1 --pairings any --clean-weights 0"
    options = ["--model", "digits", *few.split(), "--label-smoothing", "0", "--skip-damaged"]
    status, out, _ = run("compare", str(mess.root), *options, "--output", str(tmp_path / "out"))
    lines = out.splitlines()

    assert status == 0
    assert lines[0].endswith(f"3 classes, {len(mess.good)} images")
    assert f"{len(mess.damaged)} damaged images left out" in lines
    assert any("Training/cat/1.png = test-set/cat/again.png" in line for line in lines)
    check_told(mess, lines)
