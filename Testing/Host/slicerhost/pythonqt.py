"""The module ``qt`` with PythonQt's manners, made from PySide6.

PythonQt shows every Q_PROPERTY as an attribute and keeps the setters callable; it connects by signature string
(``w.connect("clicked(bool)", f)``) and refuses attributes that a C++ object does not have.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import shiboken6
from PySide6 import QtCore, QtGui, QtNetwork, QtWidgets

_read = QtCore.QObject.property
_write = QtCore.QObject.setProperty
# the classes' own __setattr__ refuses to be called from a replacement of it
_plain_set_attribute = ctypes.pythonapi.PyObject_GenericSetAttr
_plain_set_attribute.argtypes = [ctypes.py_object] * 3
_MODULES = (QtCore, QtGui, QtWidgets, QtNetwork)
_FREE_NAMES = frozenset({"__class__", "__dict__", "__doc__"})


class ValueProperty(property):
    """A Q_PROPERTY: its value on an object; on the class, what PySide6 has there (for example QTimer.singleShot)."""

    def __init__(self, fget: Callable, fset: Callable | None, original: Any):
        super().__init__(fget, fset)
        self.original = original

    def __get__(self, instance, owner=None):
        if instance is not None:
            return super().__get__(instance, owner)
        bind = getattr(self.original, "__get__", None)
        return self.original if bind is None else bind(None, owner)


def _static(cls: type, name: str) -> Any:
    """The class attribute as it stands, unbound; None where there is none."""
    return next((c.__dict__[name] for c in cls.__mro__ if name in c.__dict__), None)


def _value_property(cls: type, name: str, writable: bool) -> ValueProperty:
    capital = name[0].upper() + name[1:]
    candidates = [_static(cls, n) for n in (name, f"is{capital}", f"has{capital}")]
    # isinstance(x, QtCore.Signal) takes a reference from True or False each time, which ends the process
    getter = next((c for c in candidates if c is not None and type(c) is not QtCore.Signal), None)
    setter = getattr(cls, f"set{capital}", None)

    def fget(self):
        if getter is not None:
            try:
                return getter.__get__(self, type(self))()
            except TypeError:  # the method of that name needs arguments: it is not the getter
                pass
        return _read(self, name)

    def fset(self, value):
        if setter is not None:
            try:
                return setter(self, value)
            except TypeError:  # no such overload; Qt may still convert the value
                pass
        if not _write(self, name, value):
            raise AttributeError(f"{type(self).__name__}.{name} cannot take {value!r}")

    return ValueProperty(fget, fset if writable else None, candidates[0])


def _object_classes() -> list[type]:
    found = {c for module in _MODULES for c in vars(module).values() if isinstance(c, type) and issubclass(c, QtCore.QObject)}
    return sorted(found, key=lambda c: (len(c.__mro__), c.__name__))


def _own_properties(cls: type) -> Iterator[tuple[str, bool]]:
    meta = cls.__dict__.get("staticMetaObject")
    for i in range(meta.propertyOffset(), meta.propertyCount()) if meta is not None else ():
        yield meta.property(i).name(), meta.property(i).isWritable()


def _signal(sender: QtCore.QObject, signature: str):
    """The bound signal of a PythonQt signature such as ``"valueChanged(double)"``."""
    name, _, arguments = signature.partition("(")
    bound = getattr(sender, name)
    arguments = arguments.rstrip(")").strip()
    if arguments:
        try:
            return bound[arguments]
        except (KeyError, IndexError, TypeError):  # a single signature, or one written in MRML types
            pass
    return bound


def _is_signature(value: Any) -> bool:
    return isinstance(value, str) and value[:1] not in "12"  # "1..." and "2..." are Qt's own SLOT() and SIGNAL() forms


def _connect(sender: QtCore.QObject, builtin: Callable, args: tuple, kwargs: dict) -> Any:
    if len(args) == 2 and _is_signature(args[0]):
        _signal(sender, args[0]).connect(args[1])
        return True
    if len(args) == 3 and _is_signature(args[0]):  # signal, receiver, slot
        _signal(sender, args[0]).connect(getattr(args[1], args[2].partition("(")[0]))
        return True
    return builtin(*args, **kwargs)


def _disconnect(sender: QtCore.QObject, builtin: Callable, args: tuple, kwargs: dict) -> Any:
    if args and _is_signature(args[0]):
        return _signal(sender, args[0]).disconnect(*args[1:])
    return builtin(*args, **kwargs)


def _attribute_reader(original: Callable) -> Callable:
    # QObject answers "connect" in C, before any class attribute: it can only be replaced while being looked up
    def __getattribute__(self, name):
        if name == "connect":
            return lambda *a, **k: _connect(self, original(self, name), a, k)
        if name == "disconnect":
            return lambda *a, **k: _disconnect(self, original(self, name), a, k)
        return original(self, name)

    return __getattribute__


#: Classes whose objects are C++ objects in Slicer: no new attribute may be put on them from outside.
SEALED: set[type] = set()
_open = 0


@contextlib.contextmanager
def unsealed() -> Iterator[None]:
    """PySide6's form loader puts the children of a form on it as attributes: allow that while it works."""
    global _open
    _open += 1
    try:
        yield
    finally:
        _open -= 1


def _set_attribute(self, name: str, value: Any) -> None:
    cls = type(self)
    attribute = _static(cls, name)
    if type(attribute) is QtCore.Property:  # a property of the host's own classes
        if attribute.fset is None:
            raise AttributeError(f"{cls.__name__}.{name} is read-only")
        attribute.fset(self, value)
        return
    # PySide6 keeps an object's bound signals as its attributes
    guarded = not _open and cls in SEALED and type(value) is not QtCore.SignalInstance
    if guarded and not name.startswith("_") and name not in _FREE_NAMES and not hasattr(type(attribute), "__set__"):
        if name not in self.dynamicPropertyNames():
            raise AttributeError(f"{cls.__name__} has no property {name}")
        _write(self, name, value)
        return
    _plain_set_attribute(self, name, value)


def _first_of(function: Callable) -> staticmethod:
    return staticmethod(lambda *a, **k: function(*a, **k)[0])


def install() -> types.ModuleType:
    """Make ``import qt`` work; to be called once, before any widget is made."""
    qt = types.ModuleType("qt")
    qt.__doc__ = __doc__
    for module in _MODULES:
        for name in dir(module):
            if not name.startswith("_"):
                setattr(qt, name, getattr(module, name))
    classes = _object_classes()
    # all are read before any is replaced: getters are looked up through the bases
    planned = [(c, n, _value_property(c, n, w)) for c in classes for n, w in _own_properties(c)]
    for cls, name, value in planned:
        setattr(cls, name, value)
    for cls in classes:
        if "__getattribute__" in cls.__dict__:
            cls.__getattribute__ = _attribute_reader(cls.__getattribute__)
    QtCore.QObject.name = property(lambda self: self.objectName, lambda self, v: self.setObjectName(v))
    QtCore.QObject.className = lambda self: self.metaObject().className()
    QtCore.QObject.delete = lambda self: shiboken6.delete(self)
    for cls in classes:
        cls.__setattr__ = _set_attribute
    SEALED.update(classes)
    for name in ("getOpenFileName", "getSaveFileName", "getOpenFileNames"):
        setattr(QtWidgets.QFileDialog, name, _first_of(getattr(QtWidgets.QFileDialog, name)))
    from .uiloader import UiLoader

    qt.QUiLoader = UiLoader
    sys.modules["qt"] = qt
    return qt
