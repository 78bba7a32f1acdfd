"""The operations that the fault campaign kills, and how to tell what of them was lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

IMAGES, SIZE = 24, 48


def picture(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    image = rng.integers(0, 200, (SIZE, SIZE)).astype(np.uint8)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[8 + n % 9 : 26, 10 + n % 7 : 30] = 1
    return image + 40 * mask, mask


def case(n: int):
    from cers.case import Case
    from cers.rationale import describe

    image, mask = picture(n)
    return Case(
        image,
        mask,
        {1: "tumor"},
        spacing=(1.0, 1.0),
        plane="axial",
        modality="MR",
        body_site="brain",
        patient_id=f"p{n}",
        volume_id=f"v{n}",
        rationale=describe(image, mask > 0, (1.0, 1.0), modality="MR", plane="axial"),
    )


def filled(folder: Path, count: int) -> Path:
    from cers.pool import Pool

    with Pool.create(folder) as pool:
        for n in range(count):
            pool.add(case(n))
    return folder


def sound(folder: Path) -> list[str]:
    """What ``verify`` says of a pool."""
    from cers.pool import Pool

    with Pool.open(folder) as pool:
        return [f"{f.kind}: {f.message}" for f in pool.verify()]


class Killing:
    """One operation that is killed. ``work(promise)`` runs in a child; ``lost(promised)`` says what of the promised is not there."""

    def __init__(self, folder: Path, model: Path):
        self.folder, self.model, self.count = folder, model, 0

    def renew(self) -> None:
        """A fresh place to work in, once the work was done to its end."""

    def work(self, promise: Callable[[str], None]) -> None:
        raise NotImplementedError

    def lost(self, promised: list[str]) -> list[str]:
        raise NotImplementedError


class Import(Killing):
    def __init__(self, folder: Path, model: Path):
        super().__init__(folder, model)
        from PIL import Image

        for kind in ("images", "masks"):
            (folder / kind).mkdir(parents=True)
        for n in range(IMAGES):
            for kind, array in zip(("images", "masks"), picture(n)):
                Image.fromarray(array * (255 if kind == "masks" else 1)).save(folder / kind / f"c{n}.png")

    def renew(self) -> None:
        from cers.pool import Pool

        self.count += 1
        self.pool = self.folder / f"pool{self.count}"
        Pool.create(self.pool).close()

    def work(self, promise) -> None:
        from cers.pool import Pool
        from cers.pool.importer import import_folder

        with Pool.open(self.pool) as pool:
            import_folder(pool, self.folder / "images", self.folder / "masks", progress=lambda f, m: [promise(i) for i in pool.ids()[-1:]])

    def lost(self, promised) -> list[str]:
        from cers.pool import Pool

        with Pool.open(self.pool) as pool:
            return [f"case {i}" for i in set(promised) - set(pool.ids())] + sound(self.pool)


class Describe(Killing):
    """A new rationale version of each case in turn."""

    def renew(self) -> None:
        self.pool = self.folder / "pool"
        if not self.pool.exists():
            filled(self.pool, 12)

    def work(self, promise) -> None:
        from cers.pool import Pool
        from cers.rationale import describe

        with Pool.open(self.pool) as pool:
            for i in pool.ids():
                one = pool.get(i)
                version = pool.add_rationale(
                    i, describe(one.image, one.mask > 0, one.spacing, modality="MR", plane="axial"), who="campaign"
                )
                promise(f"{i} {version}")

    def lost(self, promised) -> list[str]:
        from cers.pool import Pool

        with Pool.open(self.pool) as pool:
            gone = [p for p in promised if len(pool.rationale_versions(p.split()[0])) < int(p.split()[1])]
        return gone + sound(self.pool)


class Correct(Killing):
    """A correction that replaces an earlier one of the same volume."""

    def renew(self) -> None:
        self.pool = self.folder / "pool"
        filled(self.pool, 1)

    def work(self, promise) -> None:
        from cers.case import Geometry, Volume
        from cers.pool import Pool
        from cers.pool.corrections import add_correction

        rng = np.random.default_rng(3)
        array = rng.integers(0, 900, (4, SIZE, SIZE)).astype(np.int16)
        mask = np.zeros(array.shape, np.uint8)
        mask[1:3, 10:30, 10 : 20 + os.getpid() % 20] = 1
        with Pool.open(self.pool) as pool:
            for grow in range(4):
                mask[1:3, 10:30, 10 : 15 + (os.getpid() + grow) % 25] = 1
                report = add_correction(
                    pool, Volume(array, Geometry(np.eye(4), array.shape), modality="MR"), mask, {1: "tumor"}, annotator="campaign"
                )
                for i in report.ids:
                    promise(i)

    def lost(self, promised) -> list[str]:
        from cers.pool import Pool

        with Pool.open(self.pool) as pool:
            return [f"case {i}" for i in set(promised) - set(pool.ids())] + sound(self.pool)


class Embed(Killing):
    """All vectors of a pool anew, as for another model each time."""

    def __init__(self, folder: Path, model: Path):
        super().__init__(folder, model)
        from cers.inference import load_model
        from cers.rationale import TextEmbedder

        self.net, self.text = load_model(model, threads=1), TextEmbedder()
        self.pool = filled(folder / "pool", 16)

    def renew(self) -> None:
        self.count += 1
        self.net.hash = f"{self.count:016x}"

    def work(self, promise) -> None:
        from cers.inference.embedding import embed_pool
        from cers.pool import Pool

        with Pool.open(self.pool) as pool:
            embed_pool(self.net, pool, self.text, lambda f, m: promise(str(len(pool) - len(pool.stale("image", self.net.hash)))))

    def lost(self, promised) -> list[str]:
        from cers.pool import Pool

        with Pool.open(self.pool) as pool:
            here = len(pool) - len(pool.stale("image", self.net.hash))
        return ([f"vectors: {here} of {promised[-1]}"] if promised and here < int(promised[-1]) else []) + sound(self.pool)


class Train(Killing):
    """A small run that goes on from its last checkpoint after each kill."""

    def __init__(self, folder: Path, model: Path):
        super().__init__(folder, model)
        self.pool = filled(folder / "pool", 20)
        self.network = json.loads((model / "config.json").read_text(encoding="utf-8"))["network"]

    def settings(self):
        from cers.training.config import TrainConfig

        network = {k: v for k, v in self.network.items() if k != "labels"}
        return TrainConfig.of(
            {
                "data": str(self.pool),
                "steps": 12,
                "frame": 64,
                "size": 64,
                "groups": 2,
                "members": 3,
                "unlabelled_members": 1,
                "initial": "random",
                "network": network,
                "refresh": 3,
                "checkpoint_steps": 1,
                "validate": 0,
                "validation": 0.15,
                "lr_warmup": 2,
                "validation_limit": 2,
                "method": "supervised",
                "allow_leaks": True,
                "threads": 1,
            }
        )

    def renew(self) -> None:
        self.count += 1
        self.run = self.folder / f"run{self.count}"

    def work(self, promise) -> None:
        from cers.training.runfolder import RunFolder
        from cers.training.trainer import train

        kept = RunFolder.save

        def save(run, *args, **kwargs):
            path = kept(run, *args, **kwargs)
            promise(path.name)
            return path

        RunFolder.save = save
        train(self.settings(), self.run, self.folder / "cache", resume=(self.run / "config.yaml").exists())

    def lost(self, promised) -> list[str]:
        from safetensors.torch import load_file

        from cers.training.runfolder import RunFolder
        from cers.training.runs import read_run

        if not self.run.exists():
            return []
        run = read_run(self.run)
        checkpoints = RunFolder(self.run).checkpoints()
        wrong = [] if run is None or run.state in ("stopped", "finished", "failed", "crashed") else [f"the run is told to be {run.state}"]
        if promised and (not checkpoints or checkpoints[-1].name < promised[-1]):
            wrong.append(f"checkpoint {promised[-1]}")
        for path in checkpoints:
            for file in path.glob("*.safetensors"):
                load_file(file)
            json.loads((path / "state.json").read_text(encoding="utf-8"))
        return wrong


class Install(Killing):
    """A model into the store, and into use."""

    def __init__(self, folder: Path, model: Path):
        super().__init__(folder, model)
        from cers.inference import store

        os.environ[store.ENVIRONMENT] = str(folder / "models")
        from cers.inference.packing import install

        store.use(install(model, name="first").id)

    def renew(self) -> None:
        self.count += 1

    def work(self, promise) -> None:
        from cers.inference import store
        from cers.inference.packing import install

        entry = install(self.model, name=f"model {self.count}")
        promise(entry.id)
        store.use(entry.id)
        promise(f"used {entry.id}")

    def lost(self, promised) -> list[str]:
        from cers.inference import store

        entries = {e.id: e for e in store.models()}
        wrong = [f"broken model {e.id}: {e.problem}" for e in entries.values() if e.problem and not e.shipped]
        wrong += [f"model {p}" for p in promised if not p.startswith("used ") and p not in entries]
        now = store.used()
        wrong += [f"in use: {now[:1]}, not {p}" for p in promised if p.startswith("used ") and now[:1] != [p[5:]]]
        return wrong + ([] if now else ["no model is in use any more"])


KILLINGS = {"import": Import, "describe": Describe, "correct": Correct, "embed": Embed, "train": Train, "install-model": Install}
