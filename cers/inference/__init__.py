"""Inference: a model folder, a pool and a volume in; a mask with its evidence out. torch is imported when a name is first used."""

_WHERE = {
    "Model": "model",
    "ModelConfig": "model",
    "load_model": "model",
    "save_model": "model",
    "resolve_device": "model",
    "Segmenter": "segmenter",
    "SliceResult": "segmenter",
    "embed_pool": "embedding",
    "write_report": "report",
}
__all__ = list(_WHERE)


def __getattr__(name: str):
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
