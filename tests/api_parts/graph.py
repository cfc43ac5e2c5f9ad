"""A model that is as small as one can be."""

from everloop.records import Field, Signature


def tiny_model(scale: float = 0.01) -> tuple[bytes, Signature]:
    """A real graph of two columns: p = sigmoid(scale * age), whatever the purpose."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Mul", ["age", "scale"], ["scaled"]),
        helper.make_node("Sigmoid", ["scaled"], ["yes"]),
        helper.make_node("Sub", ["one", "yes"], ["no"]),
        helper.make_node("Concat", ["no", "yes"], ["probabilities"], axis=1),
        helper.make_node("Identity", ["purpose"], ["unused"]),
    ]
    constants = [
        onnx.numpy_helper.from_array(np.array([[scale]]), "scale"),
        onnx.numpy_helper.from_array(np.array([[1.0]]), "one"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("age", TensorProto.DOUBLE, [None, 1]),
            helper.make_tensor_value_info("purpose", TensorProto.STRING, [None, 1]),
        ],
        [helper.make_tensor_value_info("probabilities", TensorProto.DOUBLE, [None, 2])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    signature = Signature(
        task="binary",
        fields=(Field(name="age", kind="number"), Field(name="purpose", kind="category", known=("car", "house"))),
        target="status",
        classes=("bad", "good"),
        positive="good",
        time="applied_at",
        key="account",
    )
    return model.SerializeToString(), signature
