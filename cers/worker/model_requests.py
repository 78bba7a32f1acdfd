"""The requests about installed models: which there are, which is in use, in and out of the store."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import ProtocolError
from .methods import Methods, params
from .server import Job


@params()
def list_(self: Methods, job: Job, given: dict) -> dict:
    from ..inference.store import models, root

    return {"folder": str(root()), "models": [entry.to_dict() for entry in models()]}


@params(source_=str, name=str)
def install(self: Methods, job: Job, given: dict) -> dict:
    from ..inference.packing import install as put

    return put(given["source"], given.get("name"), job.progress, job.cancelled.is_set).to_dict()


@params(id=str, source=str, previous=bool)
def use(self: Methods, job: Job, given: dict) -> dict:
    """Make a model the one in use: an installed one, one that is installed for it first, or the one before."""
    from ..inference import store
    from ..inference.packing import install as put

    if sum(bool(given.get(name)) for name in ("id", "source", "previous")) != 1:
        raise ProtocolError("'model_use' needs one of 'id', 'source' and 'previous'.")
    if given.get("previous"):
        return store.back().to_dict()
    identifier = given.get("id") or put(given["source"], None, job.progress, job.cancelled.is_set).id
    job.check()
    return store.use(identifier).to_dict()


@params(id_=str, path_=str, cases=bool)
def export(self: Methods, job: Job, given: dict) -> dict:
    from ..inference.packing import export as pack

    return {"path": str(pack(given["id"], given["path"], bool(given.get("cases"))))}


@params(id_=str)
def delete(self: Methods, job: Job, given: dict) -> dict:
    from ..inference.packing import delete as remove

    return {"name": remove(given["id"])}


@params(first_=str, second_=str)
def compare(self: Methods, job: Job, given: dict) -> dict:
    from ..evaluation.result import compare_models
    from ..inference.store import find

    return compare_models(find(given["first"]), find(given["second"]))


TABLE: dict[str, Callable] = {
    "model_list": list_,
    "model_install": install,
    "model_use": use,
    "model_export": export,
    "model_delete": delete,
    "model_compare": compare,
}
