"""The object of a file of tensors, as a target: plain values around the tensors that there are, or a message."""

from __future__ import annotations

import torch

from fuzz import mutators
from fuzz.targets import FindingError, Target
from prebake.errors import DocumentError
from prebake.modules.saved_object import SavedObject, parse_shape

SEED = b"""["ordered",{"_metadata":["dict",["",["dict",["version",1]]]]},["a",["tensor","a","parameter",true]],
["x",["list",["tensor","b.c","tensor",false],["size",2,3],["torch","float16"],["device","cpu"],["bytes","00ff"],
["number","nan"],["int","0x10000000000000000"],["complex",1,["number","inf"]],["tuple",null,true,1.5,"text"],
["set",1,2],["counter",["k",2]],["bytearray","01"],["tensor","a","tensor",false,[1,0]]]]]"""


class ObjectCheck:
    def __init__(self) -> None:
        self.tensors = {"a": torch.ones(2, 3), "b.c": torch.arange(4)}

    def __call__(self, data: bytes) -> None:
        try:
            SavedObject(parse_shape(data, "object.json"), self.tensors).object()
        except DocumentError as error:
            str(error).encode()
        if [tensor.requires_grad for tensor in self.tensors.values()] != [False, False]:
            raise FindingError("the object changed the weights of the module")


def target() -> Target:
    """The target."""
    return Target(lambda: [SEED], ObjectCheck(), mutators.change_json, 8192)
