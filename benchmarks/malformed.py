"""Input that nobody should give: images, masks, tables, settings, requests, archives, weights and databases that are cut, bent or wrong."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import zipfile
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path

import numpy as np

from cers.errors import CersError

from .operations import SIZE, filled, picture

Work = Callable[[], tuple[int, str]]  # gives an exit code and what was said
_HTML = b"<!DOCTYPE html><html><head><title>404 Not Found</title></head><body>nginx</body></html>\n"


def run(work: Work, promise: Callable[[str], None]) -> None:
    """Do it in this process. What was refused becomes a CersError with its words; what was not expected is raised as it is."""
    code, words = work()
    if "Traceback (most recent" in words or code not in (0, 1, 2, 130):
        raise AssertionError(f"exit code {code}: {words[-1500:]}")
    if code:
        raise CersError(" ".join(words.split())[-800:])
    promise("taken")


def inputs(folder: Path, model: Path, most: int | None = None) -> list[tuple[str, Work]]:
    """(kind: name, work) of every input, of the kinds in turn; ``most`` of them."""
    folder.mkdir(parents=True)
    pool = filled(folder / "pool", 3)
    kinds = [
        images(folder / "images", model, pool),
        masks(folder / "masks"),
        tables(folder / "tables"),
        settings(folder / "settings", pool),
        requests(folder / "requests"),
        archives(folder / "archives", pool, model),
        weights(folder / "weights", model, folder / "images"),
        databases(folder / "databases", pool),
    ]
    turns = [item for turn in zip_longest(*kinds) for item in turn if item is not None]
    return turns[:most]


def cers(*arguments: object) -> Work:
    """A command of ``cers``, in this process."""

    def work() -> tuple[int, str]:
        from typer.testing import CliRunner

        from cers.cli.app import app

        done = CliRunner().invoke(app, [str(a) for a in arguments])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.output

    return work


def bent(data: bytes) -> Iterator[tuple[str, bytes]]:
    """A good file's bytes, damaged in the ways that files are."""
    rng = np.random.default_rng(len(data))
    yield "empty", b""
    yield "one byte", data[:1]
    yield "half", data[: len(data) // 2]
    yield "its beginning", data[:200]
    yield "without its end", data[:-7]
    yield "garbage", rng.bytes(len(data))
    yield "zeros", bytes(len(data))
    yield "a web page", _HTML
    for n in range(3):
        array = np.frombuffer(data, np.uint8).copy()
        at = rng.integers(0, min(len(array), 600 * 4**n), 12)
        array[at] ^= rng.integers(1, 255, 12).astype(np.uint8)
        yield f"flipped bytes {n}", array.tobytes()


def images(folder: Path, model: Path, pool: Path) -> Iterator[tuple[str, Work]]:
    import SimpleITK as sitk

    folder.mkdir()
    array = np.stack([picture(n)[0] for n in range(4)]).astype(np.int16)

    def segment(path: Path) -> Work:
        return cers(
            "segment",
            path,
            "-o",
            folder / "out.seg.nrrd",
            "--model",
            model,
            "--pool",
            pool,
            "--threads",
            1,
            "--device",
            "cpu",
            "--no-influence",
        )

    good = sitk.GetImageFromArray(array)
    good.SetSpacing((1.0, 1.0, 3.0))
    for ending in (".nrrd", ".nii.gz", ".mha"):
        sitk.WriteImage(good, str(folder / f"good{ending}"), True)
    sitk.WriteImage(sitk.GetImageFromArray(array[0].astype(np.uint8)), str(folder / "good.png"))
    sitk.WriteImage(good[:, :, 1:2], str(folder / "good.dcm"))
    for ending in (".nrrd", ".nii.gz", ".mha", ".png", ".dcm"):
        for name, data in bent((folder / f"good{ending}").read_bytes()):
            path = folder / f"{name}{ending}"
            path.write_bytes(data)
            yield f"image: {ending} {name}", segment(path)
    odd = {
        "NaN": np.where(array > 100, np.nan, array).astype(np.float32),
        "infinite": np.where(array > 100, np.inf, array).astype(np.float32),
        "constant": np.zeros_like(array),
        "one voxel": array[:1, :1, :1],
        "one row": array[:, :1],
        "huge values": array.astype(np.float64) * 1e300,
        "tiny values": array.astype(np.float64) * 1e-300,
        "negative": -array,
    }
    for name, values in odd.items():
        sitk.WriteImage(sitk.GetImageFromArray(values), str(folder / f"odd {name}.nrrd"))
        yield f"image: {name}", segment(folder / f"odd {name}.nrrd")
    sitk.WriteImage(sitk.JoinSeries([good, good]), str(folder / "4d.nii.gz"))
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([array] * 3, -1), isVector=True), str(folder / "colour.nrrd"))
    sitk.WriteImage(sitk.GetImageFromArray(array.astype(np.complex64)), str(folder / "complex.nrrd"))
    header = (folder / "good.nrrd").read_bytes()
    for name, old, new in (
        ("huge", b"sizes: 48 48 4", b"sizes: 999999 99999 9999"),
        ("no size", b"sizes: 48 48 4", b"sizes: 0 48 4"),
        ("no space", b"(1,0,0) (0,1,0) (0,0,3)", b"(0,0,0) (0,1,0) (0,0,3)"),
        ("sheared", b"(0,1,0)", b"(5,1,0)"),
        ("not a number", b"(1,0,0)", b"(nan,0,0)"),
        ("other type", b"type: short", b"type: block"),
    ):
        (folder / f"head {name}.nrrd").write_bytes(header.replace(old, new))
        yield f"image: header {name}", segment(folder / f"head {name}.nrrd")
    (folder / "no dicom").mkdir()
    (folder / "no dicom" / "notes.txt").write_text("x")
    for name in ("4d.nii.gz", "colour.nrrd", "complex.nrrd", "no dicom", "nowhere.nrrd", "bad\nname.nrrd", "."):
        yield f"image: {name!r}", segment(folder / name)


def masks(folder: Path) -> Iterator[tuple[str, Work]]:
    import SimpleITK as sitk
    from PIL import Image

    folder.mkdir()
    image, mask = picture(1)

    def imported(name: str, write: Callable[[Path], None], ending: str = ".png") -> tuple[str, Work]:
        place = folder / name.replace(" ", "-")
        (place / "images").mkdir(parents=True)
        (place / "masks").mkdir()
        Image.fromarray(image).save(place / "images" / "a.png")
        write(place / "masks" / f"a{ending}")
        filled(place / "pool", 0)
        return f"mask: {name}", cers("pool", "import", place / "pool", "--images", place / "images", "--masks", place / "masks")

    Image.fromarray(mask * 255).save(folder / "good.png")
    for name, data in bent((folder / "good.png").read_bytes()):
        yield imported(name, lambda path, data=data: path.write_bytes(data))
    for name, array in (
        ("floats", mask * 0.5),
        ("negative", -mask.astype(np.int16)),
        ("values above 255", mask.astype(np.int16) * 999),
        ("all background", mask * 0),
        ("other size", mask[:20]),
        ("two slices", np.stack([mask, mask])),
        ("NaN", np.where(mask, np.nan, 0.0)),
    ):
        yield imported(name, lambda path, array=array: sitk.WriteImage(sitk.GetImageFromArray(array), str(path)), ".nrrd")
    yield imported("colour", lambda path: Image.fromarray(np.stack([mask * 255, mask * 90, mask], -1)).save(path))
    yield imported("many greys", lambda path: Image.fromarray(np.tile(np.arange(SIZE, dtype=np.uint8) * 5, (SIZE, 1))).save(path))
    yield imported("a folder", lambda path: path.mkdir())


def tables(folder: Path) -> Iterator[tuple[str, Work]]:
    from PIL import Image

    folder.mkdir()
    for kind, array in zip(("images", "masks"), picture(1)):
        (folder / kind).mkdir()
        Image.fromarray(array * (255 if kind == "masks" else 1)).save(folder / kind / "a.png")
    filled(folder / "pool", 0)
    texts = {
        "empty": b"",
        "spaces": b"  \n \n",
        "no image column": b"name,patient\na.png,1\n",
        "header only": b"image,patient\n",
        "unknown column": b"image,secret\na,1\n",
        "column twice": b"image,plane,plane\na,axial,axial\n",
        "open quote": b'image,diagnosis\na.png,"glioma\n',
        "too many cells": b"image\na.png,1,2,3\n",
        "no such image": b"image\nzzz.png\n",
        "image twice": b"image\na.png\na.png\n",
        "wrong plane": b"image,plane\na.png,diagonal\n",
        "not UTF-8": "image,diagnosis\na.png,Größe\n".encode("latin-1"),
        "UTF-16": "image\na.png\n".encode("utf-16"),
        "binary": bytes(range(256)) * 9,
        "null byte": b"image,diagnosis\na.png,\0\n",
        "long cell": b"image,diagnosis\na.png," + b"x" * 300_000 + b"\n",
        "a path": b"image\n../../etc/passwd\n",
        "many columns": b"image," + b",".join(b"c%d" % n for n in range(20_000)) + b"\n",
        "wrong label": b"image,label\na.png,1=\n",
        "a web page": _HTML,
    }
    for name, data in texts.items():
        (folder / f"{name}.csv").write_bytes(data)
        yield (
            f"table: {name}",
            cers(
                "pool",
                "import",
                folder / "pool",
                "--images",
                folder / "images",
                "--masks",
                folder / "masks",
                "--csv",
                folder / f"{name}.csv",
            ),
        )


def settings(folder: Path, pool: Path) -> Iterator[tuple[str, Work]]:
    folder.mkdir()
    bomb = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 8)}]\n" for a, b in zip("abcdefg", "bcdefgh"))
    texts = {
        "empty": "",
        "a list": "- 1\n- 2\n",
        "a word": "steps",
        "a tab": "steps:\t3\n\tx: 1",
        "open bracket": "steps: [1, 2",
        "twice": "steps: 1\nsteps: 2\n",
        "python object": "steps: !!python/object/apply:os.system ['true']\n",
        "unknown name": f"data: {pool}\nstepz: 3\n",
        "negative": f"data: {pool}\nsteps: -3\n",
        "text for a number": f"data: {pool}\nsteps: many\n",
        "not a number": f"data: {pool}\nsteps: .nan\n",
        "list for a number": f"data: {pool}\nsteps: [3]\n",
        "no such data": "data: nowhere\nsteps: 3\n",
        "data null": "data: null\nsteps: 3\n",
        "huge size": f"data: {pool}\nsteps: 1\nsize: 99999999\n",
        "odd size": f"data: {pool}\nsteps: 1\nsize: 0\n",
        "wrong method": f"data: {pool}\nsteps: 1\nmethod: magic\n",
        "network a word": f"data: {pool}\nsteps: 1\nnetwork: large\n",
        "anchors": bomb,
        "null byte": "steps: \0\n",
        "date": f"data: {pool}\nsteps: 2020-01-01\n",
    }
    for n, (name, text) in enumerate(texts.items()):
        (folder / f"{n}.yaml").write_text(text, encoding="utf-8")
        yield f"settings: {name}", cers("train", "--config", folder / f"{n}.yaml", "--out", folder / f"run{n}")
    (folder / "binary.yaml").write_bytes(bytes(range(256)))
    yield "settings: binary", cers("train", "--config", folder / "binary.yaml", "--out", folder / "run-binary")


def requests(folder: Path) -> Iterator[tuple[str, Work]]:
    folder.mkdir()
    np.save(folder / "good.npy", np.stack([picture(n)[0] for n in range(3)]))
    (folder / "bad.npy").write_bytes(
        b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999,), }" + b" " * 40 + b"\n"
    )
    good, eye = str(folder / "good.npy"), np.eye(4).tolist()

    def asked(method: str, **params) -> bytes:
        return json.dumps({"id": 1, "method": method, "params": params}).encode()

    lines = {
        "nothing": b"{}",
        "not JSON": b"{",
        "a list": b"[1]",
        "a number": b"3",
        "binary": bytes(range(14, 256)),
        "deep": b"[" * 100_000,
        "no id": b'{"method": "hello"}',
        "id null": b'{"id": null, "method": "hello"}',
        "id a list": b'{"id": [1], "method": "hello"}',
        "id huge": b'{"id": 1' + b"0" * 5000 + b', "method": "hello"}',
        "method null": b'{"id": 1, "method": null}',
        "method unknown": asked("reboot"),
        "params a list": b'{"id": 1, "method": "hello", "params": [1]}',
        "other protocol": asked("hello", protocol=99),
        "unknown parameter": asked("open_pool", colour="red"),
        "pool nowhere": asked("open_pool", path="/nowhere"),
        "pool a number": asked("open_pool", path=3),
        "pool with a null": asked("open_pool", path="a\0b"),
        "no model": asked("segment", image=good, ijkToRAS=eye),
        "matrix of words": asked("segment", image=good, ijkToRAS=[["a"] * 4] * 4),
        "matrix ragged": asked("segment", image=good, ijkToRAS=[[1], [2, 3]]),
        "matrix of zeros": asked("segment", image=good, ijkToRAS=np.zeros((4, 4)).tolist()),
        "array nowhere": asked("describe", image="/nowhere", mask="/nowhere"),
        "array with a null": asked("describe", image="a\0b", mask=good),
        "array of lies": asked("describe", image=str(folder / "bad.npy"), mask=good),
        "array a folder": asked("describe", image=str(folder), mask=good),
        "spacing negative": asked("describe", image=good, mask=good, spacing=[-1, 1]),
        "model nowhere": asked("load_model", path="/nowhere"),
        "device magic": asked("load_model", device="magic"),
        "threads -1": asked("load_model", threads=-1),
        "infinite": b'{"id": 1, "method": "search", "params": {"text": "x", "k": Infinity}}',
        "cancel nothing": asked("cancel", request={"a": 1}),
        "shape a word": asked("next_mask", path=good, ijkToRAS=eye, shape=["a", "b", "c"]),
        "too long": b'{"id": 1, "x": "' + b"x" * (17 << 20) + b'"}',
    }
    for name, line in lines.items():
        yield f"request: {name}", lambda line=line: answer(line, folder)


def answer(line: bytes, folder: Path) -> tuple[int, str]:
    """What a worker says to a line; the exit code is 1 for an error that it expects, and 3 for one that it does not."""
    import threading

    from cers.worker.server import Server, _methods

    asking, asked = os.pipe()
    answering, answered = os.pipe()
    server = Server(os.fdopen(asking, "rb"), os.fdopen(answered, "wb"), folder, lambda: _methods(folder))
    threading.Thread(target=server.run, daemon=True).start()
    with os.fdopen(answering, "rb") as events, os.fdopen(asked, "wb", buffering=0) as out:
        events.readline()  # ready
        data = memoryview(line + b"\n")
        while data:
            data = data[out.write(data) :]
        while (event := json.loads(events.readline()))["type"] == "progress":
            pass
        out.write(b'{"id": "after", "method": "hello", "params": {"protocol": 1}}\n')  # and it goes on
        while (after := json.loads(events.readline())).get("id") != "after":
            pass
    if after["type"] != "result":
        return 3, f"the worker did not go on: {after}"
    if event["type"] == "error":
        return 3 if event["code"] == "internal" else 1, event["message"]
    return 0, ""


def archives(folder: Path, pool: Path, model: Path) -> Iterator[tuple[str, Work]]:
    from cers.pool import Pool
    from cers.pool.transfer import export_pool

    folder.mkdir()
    good, target = folder / "good.zip", filled(folder / "pool", 0)
    with Pool.open(pool) as opened:
        export_pool(opened, good)

    def merged(path: Path) -> Work:
        return cers("pool", "merge", target, path)

    for name, data in bent(good.read_bytes()):
        (folder / f"{name}.zip").write_bytes(data)
        yield f"archive: {name}", merged(folder / f"{name}.zip")
    with zipfile.ZipFile(good) as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    text = next(n for n in members if n.endswith(".json"))
    changes = {
        "no list": {text: None},
        "list of words": {text: b'["a"]'},
        "list empty": {text: b"{}"},
        "list null": {text: b"null"},
        "list not JSON": {text: b"{"},
        "pictures gone": {n: None for n in members if n != text},
        "pictures empty": {n: b"" for n in members if n != text},
        "going up": {"../../evil.txt": b"x"},
        "a bomb": {"bomb.npz": bytes(200 << 20)},
    }
    for name, change in changes.items():
        path = folder / f"{name}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in {**members, **change}.items():
                if data is not None:
                    archive.writestr(member, data)
        yield f"archive: {name}", merged(path)
    yield "archive: itself", merged(target)
    with zipfile.ZipFile(folder / "model.zip", "w") as archive:
        for file in model.iterdir():
            archive.write(file, file.name)
    os.environ["CERS_MODELS"] = str(folder / "models")
    for name, data in bent((folder / "model.zip").read_bytes()):
        (folder / f"model {name}.zip").write_bytes(data)
        yield f"archive: model {name}", cers("model", "install", folder / f"model {name}.zip")


def weights(folder: Path, model: Path, images_folder: Path) -> Iterator[tuple[str, Work]]:
    folder.mkdir()

    def segmented(name: str, file: str, data: bytes) -> tuple[str, Work]:
        place = folder / name.replace(" ", "-")
        shutil.copytree(model, place)
        (place / file).write_bytes(data)
        return f"model: {name}", cers(
            "segment", images_folder / "good.nrrd", "-o", folder / "out.nrrd", "--model", place, "--threads", 1, "--device", "cpu"
        )

    file = (model / "model.safetensors").read_bytes()
    for name, data in bent(file):
        yield segmented(f"weights {name}", "model.safetensors", data)
    yield segmented("weights long head", "model.safetensors", (1 << 60).to_bytes(8, "little") + file[8:])
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    changes = {
        "no network": {"network": None},
        "network empty": {"network": {}},
        "labels a list": {"labels": ["tumor"]},
        "label 0": {"labels": {"0": "x"}},
        "size 0": {"size": 0},
        "size a word": {"size": "large"},
        "temperature 0": {"temperature": 0},
        "threshold 7": {"threshold": 7},
        "selection a list": {"selection": [1]},
        "selection unknown": {"selection": {"magic": 1}},
        "text encoder nowhere": {"text_encoder": "/nowhere"},
        "format 9": {"format": 9},
        "unknown": {"magic": 1},
        "encoder unknown": {"network": {**config["network"], "encoder": {"kind": "magic"}}},
        "widths words": {"network": {**config["network"], "widths": ["a"]}},
    }
    for name, change in changes.items():
        yield segmented(f"settings {name}", "config.json", json.dumps({**config, **change}).encode())
    yield segmented("settings binary", "config.json", bytes(range(256)))


def databases(folder: Path, pool: Path) -> Iterator[tuple[str, Work]]:
    folder.mkdir()
    file = (pool / "pool.sqlite").read_bytes()
    rng = np.random.default_rng(1)
    damaged = dict(bent(file))
    for n in range(4):
        array = np.frombuffer(file, np.uint8).copy()
        page = rng.integers(1, max(2, len(array) // 4096)) * 4096
        array[page : page + 200] = rng.integers(0, 255, len(array[page : page + 200]))
        damaged[f"a page {n}"] = array.tobytes()
    for n, (name, data) in enumerate(damaged.items()):
        place = folder / name.replace(" ", "-")
        shutil.copytree(pool, place)
        (place / "pool.sqlite").write_bytes(data)
        for log in place.glob("pool.sqlite-*"):
            log.unlink()
        yield (
            f"database: {name}",
            cers("pool", ("list", "verify", "search", "health")[n % 4], place, *(("--text", "ring") if n % 4 == 2 else ())),
        )
    for name, statement in (
        ("foreign", "DROP TABLE cases"),
        ("labels", "UPDATE cases SET labels = '['"),
        ("matrix", "UPDATE cases SET ijkToRAS = '[1]'"),
        ("spacing", "UPDATE cases SET spacing = '\"x\"'"),
        ("newer", "PRAGMA user_version = 99"),
        ("file name", "UPDATE cases SET file = '../../x'"),
    ):
        place = folder / f"changed-{name}"
        shutil.copytree(pool, place)
        with sqlite3.connect(place / "pool.sqlite") as db:
            db.execute(statement)
        db.close()
        for command in ("list", "verify"):
            yield f"database: {name} changed, {command}", cers("pool", command, place)
