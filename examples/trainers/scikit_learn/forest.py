"""A scikit-learn pipeline as a trainer, for every task: a forest of as many trees as help on the validation rows.

trainer: "forest:fit"
code: /path/to/examples/trainers/scikit_learn
inputs: features
params: {most: 200, leaf: 5}
"""

from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.impute import SimpleImputer
from sklearn.metrics import log_loss, mean_squared_error
from sklearn.pipeline import Pipeline, make_pipeline

from everloop.trainer import Learned, Training

STEP = 20


def fit(training: Training) -> Learned:
    """Add trees until the validation loss no longer falls; in a refit, as many as were found."""
    if training.iterations:
        return Learned(_fitted(training, training.iterations), training.iterations)
    best, best_loss = None, float("inf")
    for trees in range(STEP, training.params.get("most", 200) + 1, STEP):
        model = _fitted(training, trees)
        name, loss = _loss(training, model)
        training.report(trees, most=training.params.get("most", 200), **{f"validation_{name}": loss})
        if loss >= best_loss or training.should_stop():
            break
        best, best_loss = Learned(model, trees), loss
    return best


def _loss(training: Training, model: Pipeline) -> tuple[str, float]:
    rows, y = training.validation.numpy(), training.validation.y
    if training.task == "regression":
        return "squared_error", mean_squared_error(y, model.predict(rows))
    return "log_loss", log_loss(y, model.predict_proba(rows), labels=range(len(training.classes)))


def _fitted(training: Training, trees: int) -> Pipeline:
    kind = RandomForestRegressor if training.task == "regression" else RandomForestClassifier
    forest = kind(
        trees, min_samples_leaf=training.params.get("leaf", 5), random_state=training.seed, n_jobs=training.cores
    )
    return make_pipeline(SimpleImputer(strategy="median"), forest).fit(training.train.numpy(), training.train.y)
